"""The process group: how ranks meet and exchange tensors. This file is the only one that knows torch.distributed."""

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 2**24  # numbers that are added up over the ranks in one message
START_S = 600  # within which a rank has imported what it needs, and rank 0 has opened its data
FOREVER = timedelta(days=365)  # ranks wait for rank 0's test reads; that one has died is noticed by other means


def in_use() -> bool:
    """Whether this process belongs to a process group already."""
    return dist.is_initialized()


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank()


def shares(count: int) -> list[int]:
    """How many of `count` rows each rank has: slices in order, of equal size or one more."""
    ranks = dist.get_world_size()
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def own_rows(count: int) -> slice:
    """The rows of this rank."""
    sizes, rank = shares(count), dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def all_rows(rows: Tensor, count: int) -> Tensor:
    """(count, …): the rows of all ranks, in order, from this rank's; without a gradient."""
    sizes = shares(count)
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def sum_over_ranks(tensor: Tensor) -> None:
    """Add up a tensor over all ranks, in place."""
    dist.all_reduce(tensor)


def sum_all(tensors: Iterable[Tensor]) -> None:
    """Add up each of these tensors over all ranks, in place, in few messages."""
    for some in _buckets(tensors):
        _together(some, dist.all_reduce)


def average_all(tensors: Iterable[Tensor]) -> None:
    """Average each of these tensors over all ranks, in place, in few messages."""
    for some in _buckets(tensors):
        _together(some, dist.all_reduce)
        torch._foreach_div_(some, dist.get_world_size())


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in lists of one type and about `BUCKET` numbers, in an order that is the same on all ranks."""
    waiting: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        some = waiting.setdefault(tensor.dtype, [])
        some.append(tensor)
        if sum(t.numel() for t in some) >= BUCKET:
            yield waiting.pop(tensor.dtype)
    yield from waiting.values()


def _together(tensors: list[Tensor], send: Callable[[Tensor], Any]) -> None:
    """Send tensors as one message and put what comes back in their place."""
    message = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    send(message)
    for tensor, part in zip(tensors, message.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Put the values of rank 0 into these tensors of all ranks, in place."""
    for some in _buckets(tensors):
        _together(some, lambda message: dist.broadcast(message, 0))


def is_message_error(error: Exception) -> bool:
    """Whether an error was raised by an exchange between ranks."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))


def store(folder: Path, count: int) -> dist.Store:
    """The store, a file in `folder`, through which `count` ranks find each other."""
    shared = dist.FileStore(str(folder / "store"), count)
    shared.set_timeout(timedelta(seconds=START_S))
    return shared


def join(rank: int, count: int, device: str, store: dist.Store) -> None:
    """Become `rank` of `count`, by messages that do not leave this machine."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else its watchdog ends the process, not the wait
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=FOREVER)


def leave() -> None:
    """Leave the group in order; waits for messages under way."""
    dist.destroy_process_group()


def abort() -> None:
    """End the group at once; messages under way fail."""
    dist.distributed_c10d._abort_process_group()
