"""The norms of mixed embeddings, from the cosines of what they mix."""

from __future__ import annotations

from torch import Tensor


def inverse_norms(lam: float | Tensor, cosines: Tensor) -> Tensor:
    """Return 1/‖λz_i + (1−λ)z_j‖, at most 1e6, from the cosines of i and j; the gradient is 0 at that limit."""
    # λ² + (1−λ)² + 2λ(1−λ)s as a sum of two non-negative terms, which cannot cancel
    square = (cosines + 1).mul_(2 * lam * (1 - lam)).add_((2 * lam - 1) ** 2)
    return square.clamp_(min=1e-12).rsqrt_()
