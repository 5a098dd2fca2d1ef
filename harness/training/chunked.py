"""A forward pass in chunks, for batches whose activations do not fit into memory.

It uses the memory of one chunk and computes the gradients of the whole batch. All embeddings of a batch exist at
once, so the loss and Metrix do not change. Activations are discarded and computed again, chunk by chunk, in the
backward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016), which takes about a third more time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from harness.training.embedder import Network, Wrapped, batch_norms

NO_MEMORY = (  # in a plain RuntimeError
    *("can't allocate memory", "Cannot allocate memory", "out of memory", "ALLOC_FAILED"),
    *("could not create a primitive", "could not create a memory"),  # oneDNN, whose message names no cause
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: on a GPU, in Python or numpy, or in torch on a processor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


class _Stop(Exception):
    """Raised to end a forward pass at a stage; carries the stage's maps."""

    def __init__(self, maps: Tensor):
        self.maps = maps


def _stop(maps: Tensor) -> Tensor:
    raise _Stop(maps)


class Chunked(Wrapped):
    """A network that processes at most `rows` rows at a time, about equally many in each chunk.

    Embeddings, gradients and buffers equal those of the plain network if no row affects another (`exact`). BatchNorm
    in train mode normalises each chunk separately and updates its running statistics once per chunk. Dropout and
    drop-path draw the same number of masks in another order. Mixing at an earlier stage runs the layers before it
    twice: once for the maps of all rows, which are mixed, and once for the clean rows of each chunk.
    """

    def __init__(self, model: Network, rows: int):
        super().__init__(model)
        if rows < 1:
            raise ValueError(f"rows is {rows}; a chunk needs at least one row")
        self.rows = rows

    @property
    def exact(self) -> bool:
        """Return whether the chunks compute the same as the batch, that is, whether no BatchNorm trains."""
        return getattr(self.model, "norm", "train") == "frozen" or not batch_norms(self.model)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (n, dim) of normalised images (n, 3, side, side)."""
        return self._each(self.model, images)

    def forward_to(self, stage: str | int, images: Tensor) -> Tensor:
        """Return the last feature map of the images; see `Embedder.forward_to`."""
        return self._each(partial(self.model.forward_to, stage), images)

    def forward_from(self, stage: str | int, maps: Tensor) -> Tensor:
        """Return unit embeddings (m, dim) of last feature maps (m, …)."""
        return self._each(partial(self.model.forward_from, stage), maps)

    def forward_joint(
        self, stage: str | int, images: Tensor, mix: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings of the clean rows (n, dim) and of the rows mixed at `stage` (m, dim); see `Embedder`."""

        def maps_of(chunk: Tensor) -> Tensor:
            try:
                self.model.forward_joint(stage, chunk, _stop)
            except _Stop as stop:
                return stop.maps
            raise AssertionError("the network did not reach the stage")

        def both(chunk: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
            return self.model.forward_joint(stage, chunk, lambda _: mixed)

        chunks = self._split(images)
        mixed = mix(torch.cat([self._run(maps_of, chunk, track=False) for chunk in chunks]))
        parts = [self._run(both, *pair) for pair in zip(chunks, mixed.tensor_split(len(chunks)), strict=True)]
        clean, mixed = (torch.cat(rows) for rows in zip(*parts, strict=True))
        return clean, mixed

    def _each(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return torch.cat([self._run(function, chunk) for chunk in self._split(rows)])

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.tensor_split(max(1, -(-len(rows) // self.rows)))

    def _run(self, function: Callable[..., Any], *inputs: Tensor, track: bool = True) -> Any:
        """Return function(*inputs), run again in the backward pass; without `track`, statistics do not change."""
        if not torch.is_grad_enabled():
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(self._contexts, track))

    def _contexts(self, track: bool) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Return the contexts of a pass and of its repetition, which uses the same statistics and changes none."""
        norms = [norm for norm in batch_norms(self.model) if norm.training]
        tracked = [norm.track_running_stats for norm in norms]  # off inside `metrix.network.isolated`
        return nullcontext() if track else _on_copies(norms, tracked), _on_copies(norms, tracked)


@contextmanager
def _on_copies(norms: list[_BatchNorm], tracked: list[bool]) -> Iterator[None]:
    """Let BatchNorm layers, tracking or not, work on copies of their buffers."""
    before = [(norm, norm.track_running_stats, dict(norm._buffers)) for norm in norms]
    for norm, tracks in zip(norms, tracked, strict=True):
        norm.track_running_stats = tracks
        norm._buffers.update({name: b.clone() for name, b in norm._buffers.items() if b is not None})
    try:
        yield
    finally:
        for norm, tracks, buffers in before:
            norm.track_running_stats = tracks
            norm._buffers.update(buffers)
