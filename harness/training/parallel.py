"""A network divided among ranks: each rank computes a slice of the rows, and everything else is repeated on all.

Every rank has the whole batch of images, its labels, λ, pairs, proxies and loss, so losses and Metrix see the global
batch and do not know about ranks. `Parallel` gives each rank a slice of the rows before the network and all
embeddings after it; gradients take the same way back (as in Megatron-LM, Shoeybi et al. 2019). Two things differ from
a single process: the order in which numbers are added, and the masks of dropout and drop-path for the rows of ranks
1, 2, … (rank 0 draws the masks of a single process).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from harness.data.loading import Augmentation, Cropped
from harness.training import group
from harness.training.embedder import Network, Wrapped, batch_norms


class Parallel(Wrapped):
    """A network whose rows are divided among the ranks; all ranks pass in the same rows and get all results.

    BatchNorm in training uses the exact statistics of all rows. In a `Chunked` network it uses those of a chunk, and
    running statistics are averaged over the ranks after each step. All ranks get the weights of rank 0.
    """

    def __init__(self, model: Network):
        super().__init__(model)
        group.broadcast([*model.parameters(), *model.buffers()])

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (n, dim) of normalised images (n, 3, side, side)."""
        with self._pass(images):
            return gather(self.model(scatter(images)), len(images))

    def forward_to(self, stage: str | int, images: Tensor) -> Tensor:
        """Return the last feature map of the images; see `Embedder.forward_to`."""
        with self._pass(images):
            return gather(self.model.forward_to(stage, scatter(images)), len(images))

    def forward_from(self, stage: str | int, maps: Tensor) -> Tensor:
        """Return unit embeddings (m, dim) of last feature maps (m, …)."""
        with self._pass(maps):
            return gather(self.model.forward_from(stage, scatter(maps)), len(maps))

    def forward_joint(
        self, stage: str | int, images: Tensor, mix: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings of the clean rows (n, dim) and of the rows mixed at `stage` (m, dim); see `Embedder`."""
        count = 0

        def mix_all(own_rows: Tensor) -> Tensor:
            nonlocal count
            mixed = mix(gather(own_rows, len(images)))
            count = len(mixed)
            return scatter(mixed)

        with self._pass(images):
            clean, mixed = self.model.forward_joint(stage, scatter(images), mix_all)
            return gather(clean, len(images)), gather(mixed, count)

    def reduce(self) -> None:
        """Sum the gradients over the ranks, and average the running statistics of chunks."""
        group.sum_all(p.grad for p in self.model.parameters() if p.grad is not None)
        if not getattr(self.model, "exact", True):
            norms = [norm for norm in batch_norms(self.model) if norm.training and norm.running_mean is not None]
            buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
            group.average_all(buffer for buffer in buffers if buffer is not None)

    @contextmanager
    def _pass(self, rows: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            if self.training:
                stack.enter_context(_own_masks(rows.device))
            if getattr(self.model, "exact", True) and any(
                norm.training or norm.running_mean is None for norm in batch_norms(self.model)
            ):
                stack.enter_context(_Synchronised())
            yield


class Divided(Augmentation):
    """An augmentation in which each rank reads a slice of the files; all ranks get the same batch.

    Decoded images are augmented completely on every rank.
    """

    def _part(self, count: int) -> range:
        return range(count)[group.own_rows(count)]

    def _together(self, images: Cropped) -> Tensor:
        return group.all_rows(images.pixels, images.total)


def scatter(rows: Tensor) -> Tensor:
    """Return this rank's slice of rows (n, …) that all ranks have; in the backward pass all get the gradient."""
    return _Scatter.apply(rows)


def gather(rows: Tensor, count: int) -> Tensor:
    """Return the rows of all ranks, (count, …), from this rank's slice, which gets its slice of the gradient."""
    return _Gather.apply(rows, count)


class _Scatter(Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return rows[group.own_rows(ctx.count)].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (hidden by its decorator)
        return group.all_rows(gradient, ctx.count)


class _Gather(Function):
    @staticmethod
    def forward(ctx, rows: Tensor, count: int) -> Tensor:
        ctx.count = count
        return group.all_rows(rows, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride] (hidden by its decorator)
        return gradient[group.own_rows(ctx.count)], None


class _Synchronised(TorchFunctionMode):
    """A mode in which every batch normalisation uses the statistics of the rows of all ranks."""

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
    """Compute F.batch_norm over the rows of all ranks."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    normalised, mean, var, count = _Normalise.apply(input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
        unbiased = var * (count / (count - 1))
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    return normalised


class _Normalise(Function):
    """Return (x − mean)/√(var + ε)·weight + bias of x (n, c, …), with moments over the rows of all ranks, and these.

    The variance of centred values takes a second message, but a difference of squares would lose digits. A rank may
    have no rows. Computed in float32 or wider.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = torch.cat([wide.sum(axes), wide.new_tensor([x.numel() // x.shape[1]])])
        group.sum_over_ranks(sums)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = wide - mean.view(shape)
        var = centred.square().sum(axes)
        group.sum_over_ranks(var)
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
    def backward(ctx: Any, gradient: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride] (hidden by its decorator)
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(ctx.shape)) * inverse.view(ctx.shape)
        own = torch.stack([gradient.sum(ctx.axes), (gradient * normalised).sum(ctx.axes)])
        total = own.clone()
        group.sum_over_ranks(total)
        shift, along = (moment.view(ctx.shape) for moment in total / count)
        scale = (inverse if weight is None else inverse * weight).view(ctx.shape)
        towards_x = (scale * (gradient - shift - normalised * along)).to(x.dtype)
        # Weight and bias get only this rank's part: `reduce` sums it like that of all other parameters.
        return towards_x, None if weight is None else own[1].to(weight.dtype), own[0] if ctx.biased else None, None


@contextmanager
def _own_masks(device: torch.device) -> Iterator[None]:
    """Inside, let each rank draw its own masks, and rank 0 those of a single process; outside, all draw the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if rank := group.rank():
            torch.manual_seed(torch.randint(2**62, ()).item() + rank)
        yield
    for generator_device in ("cpu", *devices):
        torch.rand((), device=generator_device)  # so that the next pass draws other masks


def backward(model: nn.Module, criterion: nn.Module, check: Callable[[], None] = lambda: None):
    """Return a replacement of `loss.backward()` that gives every rank the full gradient.

    All ranks compute the gradient of the proxies from the same numbers, but GPUs may add them in another order, and
    the proxies would drift apart. So all ranks take that of rank 0. `check` raises if a rank has failed.
    """
    assert isinstance(model, Parallel)
    group.broadcast(criterion.parameters())

    def run(loss: Tensor) -> None:
        check()
        loss.backward()
        model.reduce()
        group.broadcast(p.grad for p in criterion.parameters() if p.grad is not None)

    return run
