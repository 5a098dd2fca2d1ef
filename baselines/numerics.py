"""The numerics of all losses, exact at the ends of their ranges: unit vectors, cosines, log Σ w eˣ, log(1 + eˣ)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

# torch leaves this function untyped.
vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@contextmanager
def full_precision(device: torch.device, convolutions: bool = False) -> Generator[None]:
    """Turn autocast and TF32 off: three digits of a similarity of 0.999 are too few when it is multiplied by 75.

    This covers matrix products, and `convolutions`, which torch rounds on a GPU by default, if they are wanted. Each
    kind of device has its own switches. The older `torch.set_float32_matmul_precision` sets those of products too,
    but it cannot be read after a caller has set them one by one.
    """
    backends: Any = torch.backends  # its type lacks some of the switches
    products, convolving = (
        (backends.cuda.matmul, backends.cudnn.conv)
        if device.type == "cuda"
        else (backends.mkldnn.matmul, backends.mkldnn.conv)
    )
    switches = (products, convolving) if convolutions else (products,)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function's backward pass raise a RuntimeError under `create_graph=True`.

    `torch.autograd.function.once_differentiable` raises only if the incoming gradient has a graph itself. Otherwise
    it drops the second derivative silently.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("these losses have no second derivative: take gradients without create_graph=True")
        return backward(ctx, *gradients)

    return checked


class _Unit(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        norms = vector_norm(x, dim=1, keepdim=True)
        # Adding 0 makes the length NaN where it is infinite: the row is then NaN, and not a zero that looks sound.
        lengths = norms.clamp(min=1e-12).add_(norms - norms)
        units = x / lengths
        ctx.save_for_backward(units, lengths)
        ctx.mark_non_differentiable(norms)
        return units, norms

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        radial = (units * gradient).sum(1, keepdim=True)
        return (gradient - units * radial).div_(lengths)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of x (n, d) scaled to length one, in at least float32, and their lengths (n, 1).

    A row of zeros stays zero. One that is not finite, or too long for its type, becomes NaN.
    """
    return _Unit.apply(x if x.dtype in (torch.float32, torch.float64) else x.float())


class _Cosine(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return (a @ b.T).clamp_(-1.0, 1.0)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        with full_precision(a.device):
            return (
                gradient @ b if ctx.needs_input_grad[0] else None,
                gradient.T @ a if ctx.needs_input_grad[1] else None,
            )


class _Gram(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z @ z.mT).clamp_(-1.0, 1.0)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        with full_precision(z.device):
            return (gradient + gradient.mT) @ z


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarities (rows of a, rows of b) of unit vectors, in [−1, 1].

    If a and b are the same tensor, it may have batch dimensions. The clamp only removes rounding errors, so the
    gradient passes through it: two equal images keep theirs.
    """
    return _Gram.apply(a) if a is b else _Cosine.apply(a, b)


class _LogSumExp(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_weights: Tensor | None, slope: float, shift: float, plus_one: bool
    ) -> Tensor:
        terms = x * slope if log_weights is None else torch.add(log_weights, x, alpha=slope)
        ctx.slope, ctx.shapes = slope, (terms.shape, x.shape)
        terms = terms.flatten(1)
        # The 1 is a term of exponent −shift. Without it, the minimum avoids −inf − (−inf) for an empty sum.
        top = terms.amax(1, keepdim=True).clamp_(min=-shift if plus_one else torch.finfo(terms.dtype).min)
        total = terms.sub_(top).exp_().sum(1, keepdim=True)
        if plus_one:
            total.add_((-shift - top).exp_())
        result = total.log().add_(top).squeeze_(1).add_(shift)
        ctx.save_for_backward(terms, total)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        terms, total = ctx.saved_tensors
        shape, x_shape = ctx.shapes
        # The total is at least 1 unless the sum is empty, and then the terms are 0.
        share = gradient[:, None].mul(ctx.slope).div_(total.clamp(min=0.5))
        towards_x = (terms * share).view(shape)
        return towards_x if shape == x_shape else towards_x.sum_to_size(x_shape), None, None, None, None


def log_sum_exp(
    x: Tensor, log_weights: Tensor | None = None, slope: float = 1.0, shift: float = 0.0, plus_one: bool = False
) -> Tensor:
    """Return log Σ w e^{slope·x + shift} over all dimensions but the first, or log(1 + Σ …) with `plus_one`.

    x and log_weights (None: all weights are 1) broadcast to (a, …); the result has the shape (a,). A log-weight of −∞
    excludes an entry from the sum. An empty sum gives −∞ (0 with `plus_one`) and a gradient of zero. Only x receives
    a gradient.
    """
    if x.numel() == 0 and x.ndim > 1:  # no candidates at all
        return x.flatten(1).sum(1) + (0.0 if plus_one else -torch.inf)
    return _LogSumExp.apply(x, log_weights, slope, shift, plus_one)


class _Softplus(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, centre: float) -> Tensor:
        y = (x - centre).mul_(slope)
        ctx.slope = slope
        ctx.save_for_backward(y)
        # Exact to one rounding of 1; above 40 it is y itself. torch's log1p is 20 times slower on a CPU.
        small = y.clamp(max=40.0).exp_().add_(1.0).log_()
        return torch.maximum(small, y, out=small)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return y.sigmoid().mul_(gradient).mul_(ctx.slope), None, None


def softplus(x: Tensor, slope: float = 1.0, centre: float = 0.0) -> Tensor:
    """Return log(1 + e^{slope·(x − centre)}), to a rounding of 1, for every x including −∞.

    torch's own function returns x above 20.
    """
    return _Softplus.apply(x, slope, centre)


def clamped_(x: Tensor) -> Tensor:
    """Clamp similarities in place to [−1, 1]. That only removes rounding errors, so the gradient passes through."""
    with torch.no_grad():
        return x.clamp_(-1.0, 1.0)


def square_root(x: Tensor) -> Tensor:
    """Return √max(x, 0), with gradient 0 where it is 0: two equal embeddings have a distance but no direction."""
    zero = x <= 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
