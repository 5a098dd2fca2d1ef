"""The norms of mixed embeddings, from the cosines of what they mix."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from baselines.numerics import first_derivative_only, full_precision


def inverse_norms(lam: float | Tensor, cosines: Tensor | None = None, vectors: Tensor | None = None) -> Tensor:
    """Return 1/‖λz_i + (1−λ)z_j‖, at most 1e6, from the cosines of i and j or, for all pairs, unit vectors z (n, d).

    Exactly one of `cosines` and `vectors` is given.
    """
    return _InverseNorms.apply(cosines, vectors, lam)


class _InverseNorms(Function):
    @staticmethod
    def forward(ctx: Any, cosines: Tensor | None, vectors: Tensor | None, lam: float | Tensor) -> Tensor:
        # λ² + (1−λ)² + 2λ(1−λ)s as a sum of two non-negative terms, which cannot cancel
        if vectors is None:
            assert cosines is not None
            square = cosines + 1
        else:
            square = (vectors @ vectors.T).add_(1)
        square.mul_(2 * lam * (1 - lam)).add_((2 * lam - 1) ** 2)
        near_half = isinstance(lam, Tensor) or abs(2 * lam - 1) < 1e-6  # no other norm is so small
        cut_off = square < 1e-12 if near_half else None
        inverse = square.clamp_(min=1e-12).rsqrt_()
        ctx.lam = lam
        ctx.save_for_backward(inverse, cut_off, vectors)
        return inverse

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        inverse, cut_off, vectors = ctx.saved_tensors
        towards = inverse.pow(3).mul_(gradient).mul_(-ctx.lam * (1 - ctx.lam))
        towards = towards if cut_off is None else towards.masked_fill_(cut_off, 0.0)
        if vectors is None:
            return towards, None, None
        with full_precision(vectors.device):
            return None, (towards + towards.T) @ vectors, None
