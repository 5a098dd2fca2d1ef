"""Prepare the next batches while the current one is used: read, decode, crop, and copy to the device."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.data.ahead import read_ahead
from harness.data.loading import Cropped, Each

AHEAD = 2  # one is copied to the device while the next is read
Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Pipeline:
    """How a trial prepares its batches. It changes when they are prepared and where, never their values.

    ahead: how many batches are prepared or wait while one is used; 0 prepares each when it is needed.
    workers: how many threads prepare batches, and how many decode the images of batches on the classical path.
    finishes: whether batches are finished ahead too. A GPU finishes them on the stream on which it trains, and ranks
        exchange their parts in the order of their steps.
    """

    ahead: int = 0
    workers: int = 1
    finishes: bool = False

    @classmethod
    def of(cls, device: torch.device, processors: int, threads: int) -> "Pipeline":
        """Return the pipeline of a trial that trains on `device` and may use so many processors.

        threads: how many of them train on the CPU. It runs ahead there only if as many are spare, since it would take
        processors from training otherwise.
        """
        if device.type != "cpu":
            return cls(AHEAD, max(1, processors))
        spare = processors - threads
        return cls(AHEAD, spare, finishes=True) if spare >= threads else cls(workers=threads)

    def run(
        self,
        read: Callable[[Item, Each], Read],
        finish: Callable[[Read], Any],
        items: Iterable[Item],
        device: torch.device,
    ) -> Generator[Any]:
        """Yield finish(read(item, each)) of each item in order; close the generator to end its threads.

        `each` maps a function over the images of a batch, in threads. `read` may return tensors, or lists and tuples
        of them. An error is raised in the turn of its item.
        """
        if not self.ahead and self.workers == 1:
            yield from (finish(read(item, map)) for item in items)
            return
        decoders, lane = ThreadPoolExecutor(self.workers), _Lane(device)

        def prepare(item: Item) -> tuple[Any, Any]:
            rows, event = lane.carry(lambda: read(item, decoders.map))
            return finish(rows) if self.finishes else rows, event

        with ExitStack() as stack:
            batches = map(prepare, items)
            if self.ahead:
                threads = min(self.ahead, self.workers)
                batches = stack.enter_context(closing(read_ahead(prepare, items, threads, self.ahead)))
            stack.callback(decoders.shutdown, cancel_futures=True)  # first, so that no batch waits for its images
            for rows, event in batches:
                lane.deliver(rows, event)
                yield rows if self.finishes else finish(rows)


IN_TURN = Pipeline()  # each batch when it is needed, without threads


class _Lane:
    """The stream on which batches reach a GPU beside its work; on the CPU there is none."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def carry(self, read: Callable[[], Read]) -> tuple[Read, Any]:
        """Return what `read` returns, and the event after which it is on the device."""
        if self.stream is None:
            return read(), None
        with torch.cuda.stream(self.stream):
            return read(), self.stream.record_event()

    def deliver(self, rows: Any, event: Any) -> None:
        """Make the current stream wait for the rows, and keep their memory until it has used them."""
        if self.stream is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in _tensors(rows):
            tensor.record_stream(current)


def _tensors(rows: Any) -> Iterator[Tensor]:
    if isinstance(rows, Tensor):
        yield rows
    elif isinstance(rows, Cropped):
        yield rows.pixels
    elif isinstance(rows, list | tuple):
        for part in rows:
            yield from _tensors(part)
