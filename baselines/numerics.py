"""What every loss is made of, exact at the ends of its range: unit vectors, cosines, log Σ w eˣ, log(1 + eˣ)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast and TF32 off: a similarity of 0.999 is worth nothing in three digits when it is multiplied by 75."""
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


class _Unit(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        lengths = norms.clamp(min=1e-12)
        units = x / lengths
        ctx.save_for_backward(units, lengths)
        ctx.mark_non_differentiable(norms)
        return units, norms

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        radial = (units * gradient).sum(1, keepdim=True)
        return torch.addcmul(gradient, units, radial, value=-1).div_(lengths)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x (n, d) scaled to length one, in at least float32, and their lengths (n, 1); a zero row stays zero."""
    return _Unit.apply(x if x.dtype in (torch.float32, torch.float64) else x.float())


class _Cosine(Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return (a @ b.T).clamp_(-1.0, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        with full_precision(a.device):
            return (
                gradient @ b if ctx.needs_input_grad[0] else None,
                gradient.T @ a if ctx.needs_input_grad[1] else None,
            )


class _Gram(Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z @ z.T).clamp_(-1.0, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        with full_precision(z.device):
            return (gradient + gradient.T) @ z


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarities (rows of a, rows of b) of unit vectors, in [−1, 1].

    The clamp only removes rounding, so it lets the gradient through: two equal images keep theirs.
    """
    return _Gram.apply(a) if a is b else _Cosine.apply(a, b)


class _LogSumExp(Function):
    @staticmethod
    def forward(ctx, log_weights: Tensor, x: Tensor, slope: float, shift: float, plus_one: bool) -> Tensor:
        terms = torch.add(log_weights, x, alpha=slope).flatten(1)
        # an empty sum has only −inf terms; the finite floor keeps −inf − (−inf) away
        top = terms.amax(1, keepdim=True).clamp_(min=torch.finfo(terms.dtype).min)
        terms.sub_(top).exp_()
        total = terms.sum(1, keepdim=True)
        result = total.log() + top + shift
        share = total.clamp_(min=0.5).reciprocal_().mul_(slope)  # ≥ 1 unless the sum is empty, where terms are 0
        if plus_one:
            inner = result
            result = torch.logaddexp(inner, torch.zeros_like(inner))
            share.mul_((inner - result).exp_())
        ctx.save_for_backward(terms, share)
        ctx.shape = torch.broadcast_shapes(log_weights.shape, x.shape)
        ctx.x_shape = x.shape
        return result.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        terms, share = ctx.saved_tensors
        grown = (terms * (share * gradient[:, None])).view(ctx.shape)
        return None, grown.sum_to_size(ctx.x_shape), None, None, None


def log_sum_exp(
    log_weights: Tensor, x: Tensor, slope: float = 1.0, shift: float = 0.0, plus_one: bool = False
) -> Tensor:
    """log Σ w e^{slope·x + shift} over all dimensions but the first, or log(1 + Σ …) with `plus_one`.

    log_weights and x broadcast to (a, …); the result is (a,). −∞ is the log-weight of what is not in the sum; an
    empty sum gives −∞ (0 with `plus_one`) and a zero gradient. Only x receives a gradient.
    """
    return _LogSumExp.apply(log_weights, x, slope, shift, plus_one)


class _Softplus(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        small = x.abs().neg_().exp_()
        ctx.save_for_backward(x)
        return small.log1p_().add_(x.relu())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.sigmoid().mul_(gradient)


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), exact for every x including −∞ (torch's own is x above 20, and six times slower on a CPU)."""
    return _Softplus.apply(x)
