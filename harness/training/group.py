"""The process group: how ranks meet and exchange tensors. This is the only file that imports torch.distributed."""

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, Store  # pyright: ignore[reportPrivateImportUsage] (documented)

BUCKET = 2**24  # about how many numbers one message contains
START_S = 600  # limit for a rank to import its packages, and for rank 0 to open its data
NO_TIMEOUT = timedelta(days=365)  # ranks wait while rank 0 reads the test; dead ranks are noticed by other means


def in_use() -> bool:
    """Return whether this process already belongs to a process group."""
    return dist.is_initialized()


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank()


def shares(count: int) -> list[int]:
    """Return how many of `count` rows each rank has: slices in order, equal in size or one larger."""
    ranks = dist.get_world_size()
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def own_rows(count: int) -> slice:
    """Return the rows of this rank among `count`."""
    sizes, rank = shares(count), dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def all_rows(rows: Tensor, count: int) -> Tensor:
    """Return the rows of all ranks in order, (count, …), from this rank's `rows`; without a gradient."""
    sizes = shares(count)
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def sum_over_ranks(tensor: Tensor) -> None:
    """Sum a tensor over all ranks, in place."""
    dist.all_reduce(tensor)


def sum_all(tensors: Iterable[Tensor]) -> None:
    """Sum each of these tensors over all ranks, in place, in few messages."""
    for bucket in _buckets(tensors):
        _exchange(bucket, dist.all_reduce)


def average_all(tensors: Iterable[Tensor]) -> None:
    """Average each of these tensors over all ranks, in place, in few messages."""
    for bucket in _buckets(tensors):
        _exchange(bucket, dist.all_reduce)
        for tensor in bucket:
            tensor.div_(dist.get_world_size())


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in lists of one type and about `BUCKET` numbers, in the same order on all ranks."""
    waiting: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = waiting.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(t.numel() for t in bucket) >= BUCKET:
            yield waiting.pop(tensor.dtype)
    yield from waiting.values()


def _exchange(tensors: list[Tensor], send: Callable[[Tensor], Any]) -> None:
    """Send tensors as one message, and replace their values with the result."""
    message = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    send(message)
    for tensor, part in zip(tensors, message.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Put the values of rank 0 into these tensors of all ranks, in place."""
    for bucket in _buckets(tensors):
        _exchange(bucket, lambda message: dist.broadcast(message, 0))


def is_message_error(error: Exception) -> bool:
    """Return whether an error was raised by an exchange between ranks."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))


def store(folder: Path, count: int) -> Store:
    """Open the store, a file in `folder`, through which `count` ranks find each other."""
    shared = FileStore(str(folder / "store"), count)
    shared.set_timeout(timedelta(seconds=START_S))
    return shared


def join(rank: int, count: int, device: str, store: Store) -> None:
    """Join the group as `rank` of `count`; messages do not leave this machine."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else its watchdog ends the process
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=NO_TIMEOUT)


def leave() -> None:
    """Leave the group in order, after pending messages."""
    dist.destroy_process_group()


def abort() -> None:
    """End the group at once; pending messages fail."""
    dist.distributed_c10d._abort_process_group()
