"""One trial on several GPUs, or processes, of one machine: inside the network rows are divided, all else is repeated.

Every rank has the whole batch of images, its labels, λ, pairs, proxies and loss, so losses and Metrix see the global
batch and know nothing of ranks. `Parallel` gives each rank a slice of the rows on the way into the network and all
embeddings to each on the way out; gradients go back the same way (as in Megatron-LM, Shoeybi et al. 2019). What
differs from one process, beyond the order in which numbers are added: dropout and drop-path draw other masks for the
rows of ranks 1, 2, … (those of rank 0 come from the stream of one process). This file is the only one that knows
torch.distributed.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from harness.data.images import Unread
from harness.data.loading import Augmentation
from harness.errors import UserError
from harness.training.chunked import out_of_memory
from harness.training.models import Wrapped, batch_norms

FOLLOW = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from harness.training.parallel import _follow; _follow()"
)
BUCKET = 2**24  # numbers that are added up over the ranks in one message
START_S = 600  # within which a rank has imported what it needs, and rank 0 has opened its data
FOREVER = timedelta(days=365)  # ranks wait for rank 0's test reads; that one has died is noticed by other means
NOTICE_S = 3  # after a message failed, until the rank that failed it must have ended


class DeviceError(UserError):
    """A device that is not there, or ranks that it cannot carry."""


class RankFailed(RuntimeError):
    """A rank other than 0 that stopped; the message names it and what it said."""


class Parallel(Wrapped):
    """A network whose rows are divided among the ranks; the same rows go in on all of them and come out on all.

    BatchNorm that trains has the statistics of all rows, exactly. Around a `Chunked` network, where it has those of
    a chunk, running statistics are averaged over the ranks after each step. The weights of rank 0 are given to all.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        _broadcast([*model.parameters(), *model.buffers()])

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings (n, dim) of normalised images (n, 3, side, side)."""
        with self._pass(images):
            return gather(self.model(scatter(images)), len(images))

    def forward_to(self, stage: str | int, images: Tensor) -> Tensor:
        """The last feature map of the images; see `Embedder.forward_to`."""
        with self._pass(images):
            return gather(self.model.forward_to(stage, scatter(images)), len(images))

    def forward_from(self, stage: str | int, maps: Tensor) -> Tensor:
        """Unit embeddings (m, dim) of last feature maps (m, …)."""
        with self._pass(maps):
            return gather(self.model.forward_from(stage, scatter(maps)), len(maps))

    def forward_joint(
        self, stage: str | int, images: Tensor, mix: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of the clean rows (n, dim) and of the rows mixed at `stage` (m, dim); see `Embedder`."""
        count = 0

        def mix_all(own: Tensor) -> Tensor:
            nonlocal count
            mixed = mix(gather(own, len(images)))
            count = len(mixed)
            return scatter(mixed)

        with self._pass(images):
            clean, mixed = self.model.forward_joint(stage, scatter(images), mix_all)
            return gather(clean, len(images)), gather(mixed, count)

    def reduce(self) -> None:
        """Add up over the ranks what each has of the gradient of one loss, and average statistics of chunks."""
        for some in _buckets(p.grad for p in self.model.parameters() if p.grad is not None):
            _together(some, dist.all_reduce)
        if not getattr(self.model, "exact", True):
            norms = [norm for norm in batch_norms(self.model) if norm.training and norm.running_mean is not None]
            for some in _buckets(b for norm in norms for b in (norm.running_mean, norm.running_var)):
                _together(some, dist.all_reduce)
                torch._foreach_div_(some, dist.get_world_size())

    @contextmanager
    def _pass(self, rows: Tensor) -> Iterator[None]:
        with ExitStack() as around:
            if self.training:
                around.enter_context(_own_masks(rows.device))
            if getattr(self.model, "exact", True) and any(
                norm.training or norm.running_mean is None for norm in batch_norms(self.model)
            ):
                around.enter_context(_Synchronised())
            yield


class Divided(Augmentation):
    """An augmentation for which each rank reads a slice of the files; the same random numbers, the same batch on all.

    Images that are decoded already are augmented whole on every rank.
    """

    def _read(self, images: Unread, transform: Callable[[int], Tensor], places: range) -> Tensor:
        return all_rows(super()._read(images, transform, places[own(len(places))]), len(places))


def shares(count: int) -> list[int]:
    """How many of `count` rows each rank has: slices in order, of equal size or one more."""
    ranks = dist.get_world_size()
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def own(count: int) -> slice:
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


def scatter(rows: Tensor) -> Tensor:
    """This rank's slice of rows (n, …) that all ranks have; all get the gradient of all rows."""
    return _Scatter.apply(rows)


def gather(rows: Tensor, count: int) -> Tensor:
    """(count, …): the rows of all ranks, from this rank's slice of them, which gets its slice of the gradient."""
    return _Gather.apply(rows, count)


class _Scatter(Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return rows[own(ctx.count)].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_rows(gradient, ctx.count)


class _Gather(Function):
    @staticmethod
    def forward(ctx, rows: Tensor, count: int) -> Tensor:
        ctx.count = count
        return all_rows(rows, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[own(ctx.count)], None


class _Synchronised(TorchFunctionMode):
    """Inside, batch normalisation has the statistics of the rows of all ranks, whatever layer asks for it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (_batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm over the rows of all ranks."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    normalised, mean, var, count = _Normalise.apply(input, weight, bias, eps)
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
        unbiased = var * (count / (count - 1))
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    return normalised


class _Normalise(Function):
    """(x − mean)/√(var + ε)·weight + bias of x (n, c, …), the moments over the rows of all ranks; and the moments.

    The variance is that of centred values, a second message, because a difference of squares would lose digits. A
    rank may have no rows. Computed in float32 at least.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = torch.cat([wide.sum(axes), wide.new_tensor([x.numel() // x.shape[1]])])
        dist.all_reduce(sums)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = wide - mean.view(shape)
        var = centred.square().sum(axes)
        dist.all_reduce(var)
        var /= count
        inverse = (var + eps).rsqrt()
        out = centred * (inverse if weight is None else inverse * weight).view(shape)
        if bias is not None:
            out = out + bias.view(shape)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.axes, ctx.shape, ctx.biased = axes, shape, bias is not None
        ctx.mark_non_differentiable(mean, var, count)
        return out.to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor):
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(ctx.shape)) * inverse.view(ctx.shape)
        here = torch.stack([gradient.sum(ctx.axes), (gradient * normalised).sum(ctx.axes)])
        everywhere = here.clone()
        dist.all_reduce(everywhere)
        shift, along = (total.view(ctx.shape) for total in everywhere / count)
        scale = (inverse if weight is None else inverse * weight).view(ctx.shape)
        towards_x = (scale * (gradient - shift - normalised * along)).to(x.dtype)
        # Weight and bias have this rank's part alone: it is added up with that of all other parameters.
        return towards_x, None if weight is None else here[1].to(weight.dtype), here[0] if ctx.biased else None, None


@contextmanager
def _own_masks(device: torch.device) -> Iterator[None]:
    """Each rank draws masks of its own inside, rank 0 those of a single process; outside, all draw the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if rank := dist.get_rank():
            torch.manual_seed(torch.randint(2**62, ()).item() + rank)
        yield
    for place in ("cpu", *devices):
        torch.rand((), device=place)  # so that the next pass draws other masks


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


def _broadcast(tensors: Iterable[Tensor]) -> None:
    for some in _buckets(tensors):
        _together(some, lambda message: dist.broadcast(message, 0))


def backward(model: Parallel, criterion: nn.Module, check: Callable[[], None] = lambda: None):
    """What replaces `loss.backward()`: the full gradient on every rank, that of proxies to the bit rank 0's.

    All ranks compute the gradient of the proxies, from the same numbers; but a GPU may add them in another order, and
    proxies that drift apart would be another model on every rank. `check` raises where a rank is lost.
    """
    _broadcast(criterion.parameters())

    def run(loss: Tensor) -> None:
        check()
        loss.backward()
        model.reduce()
        _broadcast(p.grad for p in criterion.parameters() if p.grad is not None)

    return run


def devices(ranks: int, asked: str | None) -> list[torch.device]:
    """The device of each rank: cuda:0, cuda:1, … or the processor. Raises DeviceError where too few are there."""
    if ranks < 1:
        raise DeviceError(f"ranks = {ranks}; a trial has at least one")
    device = present(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    if ranks == 1 or device.type != "cuda":
        return [device] * ranks
    if device.index is not None:
        raise DeviceError(f"device {device} is one GPU; ranks = {ranks} take device cuda, which is cuda:0, cuda:1, …")
    if ranks > torch.cuda.device_count():
        raise DeviceError(f"ranks = {ranks}, and there are {torch.cuda.device_count()} GPUs")
    return [torch.device("cuda", rank) for rank in range(ranks)]


def present(name: str) -> torch.device:
    """The device of this name. DeviceError names those that this machine has where it is none of them."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name not in known:
        try:
            torch.zeros(1, device=name).item()  # a kind of device that torch knows need not be there
        except (RuntimeError, AssertionError, NotImplementedError):
            why = "" if gpus else " (torch sees no GPU)"
            raise DeviceError(f"no device {name!r} on this machine; there are: {', '.join(known)}{why}") from None
    return torch.device(name)


class Ranks(AbstractContextManager):
    """Ranks 1, 2, … as processes that call function(rank, *arguments), while this process, rank 0, goes on.

    They start on entering, and meet rank 0 when it calls `join`. A rank that raises or dies raises here: RankFailed
    naming it, or torch.OutOfMemoryError where its memory ran out. When rank 0 leaves, however it leaves, they end: a
    rank lives as long as the pipe from rank 0 is open, and the kernel closes that. `function` is found by its name.
    """

    def __init__(self, count: int, device: torch.device, function: Callable[..., None], *arguments: Any):
        self.count, self.device = count, device
        self._call = pickle.dumps((function, arguments))
        self._open, self._processes, self._leaving = ExitStack(), {}, threading.Event()

    def __enter__(self) -> "Ranks":
        if dist.is_initialized():
            raise RuntimeError(f"torch.distributed is in use in this process, which cannot be rank 0 of {self.count}")
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="metrix-ranks-")))
        for rank in range(1, self.count):
            with (self._folder / f"{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", FOLLOW], stdin=subprocess.PIPE, stdout=log, stderr=log
                )
            self._processes[rank] = process
            pickle.dump(sys.path, process.stdin)
            pickle.dump((rank, self.count, self.device.type, self._folder), process.stdin)
            process.stdin.write(self._call)
            process.stdin.flush()
        return self

    def join(self) -> None:
        """Meet the other ranks; what follows may use `Parallel`."""
        store = _store(self._folder, self.count)
        until = time.monotonic() + START_S
        for rank in self._processes:
            while not store.check([f"rank {rank}"]):
                self.check()
                if time.monotonic() > until:
                    raise RankFailed(f"rank {rank} of {self.count} has not begun within {START_S} s")
                time.sleep(0.02)
        store.set("rank 0", "here")
        _join(0, self.count, self.device.type, store)
        if self.device.type == "cuda":
            threading.Thread(target=self._abort_when_alone, daemon=True).start()

    def check(self) -> None:
        """Raise what ended a rank, where one has ended before its time."""
        if lost := self._lost():
            raise lost

    def __exit__(self, kind, error, trace) -> None:
        self._leaving.set()
        try:
            if isinstance(error, Exception) and not isinstance(error, RankFailed | torch.OutOfMemoryError):
                self._blame(error)
        finally:
            self._end(in_order=error is None)

    def _blame(self, error: Exception) -> None:
        """Raise what ended another rank, where that is why this one failed; not an error that all ranks have."""
        until = time.monotonic() + (NOTICE_S if _of_a_message(error) else 0)
        while not (lost := self._lost()) and time.monotonic() < until:
            time.sleep(0.02)
        if lost and f": {type(error).__name__}: " not in str(lost):
            raise lost from error

    def _lost(self) -> Exception | None:
        """What ended the first rank that has ended before its time."""
        for rank, process in self._processes.items():
            if process.poll():
                said, memory = self._last_words(rank)
                return (torch.OutOfMemoryError if memory else RankFailed)(f"rank {rank} of {self.count}: {said}")
        return None

    def _end(self, in_order: bool) -> None:
        for process in self._processes.values():
            if in_order:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    in_order = False
            process.kill()
            process.wait()
            process.stdin.close()
        if dist.is_initialized():
            if self.device.type == "cuda" and not in_order:
                dist.distributed_c10d._abort_process_group()  # destroying it would wait for the others
            else:
                dist.destroy_process_group()
        self._open.close()

    def _last_words(self, rank: int) -> tuple[str, bool]:
        """What ended a rank, and whether memory ran out."""
        path = self._folder / f"{rank}.json"
        if path.exists():
            words = json.loads(path.read_text(encoding="utf-8"))
            return words["error"], words["out of memory"]
        code = self._processes[rank].returncode
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with status {code}"
        log = (self._folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended {how}{': ' + log[-1] if log else ''}", False

    def _abort_when_alone(self) -> None:
        """On GPUs a message to a dead rank waits forever: end it, so that rank 0 goes on and finds out."""
        while not self._leaving.wait(1):
            if any(process.poll() for process in self._processes.values()):
                if not self._leaving.wait(NOTICE_S):
                    dist.distributed_c10d._abort_process_group()
                return


def _of_a_message(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))


def _store(folder: Path, count: int) -> dist.Store:
    store = dist.FileStore(str(folder / "store"), count)
    store.set_timeout(timedelta(seconds=START_S))
    return store


def _join(rank: int, count: int, device: str, store: dist.Store) -> None:
    """Become `rank` of `count`, by messages that do not leave this machine."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else its watchdog ends the process, not the wait
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=FOREVER)


def _follow() -> None:
    """The life of a rank other than 0: what is to be done comes through the standard input, whose end is its own."""
    rank, count, device, folder = pickle.load(sys.stdin.buffer)
    call = pickle.Unpickler(sys.stdin.buffer)

    def end_with_rank_0() -> None:
        sys.stdin.buffer.read()
        shutil.rmtree(folder, ignore_errors=True)  # rank 0 was killed, or it would have done so itself
        os._exit(1)

    try:
        function, arguments = call.load()
        threading.Thread(target=end_with_rank_0, daemon=True).start()
        store = _store(folder, count)
        store.set(f"rank {rank}", "here")
        store.wait(["rank 0"], FOREVER)
        _join(rank, count, device, store)
        function(rank, *arguments)
        if device == "cuda":
            torch.cuda.synchronize()  # rank 0 may still wait for what was sent last
    except BaseException as error:
        traceback.print_exc()
        said = {"error": f"{type(error).__name__}: {error}", "out of memory": out_of_memory(error)}
        (folder / f"{rank}.json").write_text(json.dumps(said), encoding="utf-8")
        os._exit(1)
    os._exit(0)  # without the end of an interpreter, in which a process group may wait for others
