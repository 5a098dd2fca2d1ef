"""The similarities of mixed examples, from those of the examples that they mix."""

from __future__ import annotations

from torch import Tensor


def mixed(rows: Tensor, first: Tensor, second: Tensor, lam: float | Tensor) -> Tensor:
    """Return λ·rows[first] + (1−λ)·rows[second] (m, …) for the pairs (first, second), (m,) each, of rows (n, …).

    `lam` is a number, or broadcastable to the result.
    """
    return rows.index_select(0, second).lerp(rows.index_select(0, first), lam)


def clamped(similarities: Tensor) -> Tensor:
    """Return similarities in [−1, 1]. The clamp only removes rounding errors, so the gradient passes through it."""
    fixed = similarities.detach()
    return fixed.clamp(-1.0, 1.0) + (similarities - fixed)
