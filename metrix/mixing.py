"""ℓ̃: the same loss over mixed examples, computed from similarities alone or embedded by the network."""

from __future__ import annotations

from torch import Tensor

from baselines.form import Batch, Loss
from metrix.anchors import embedded_anchors, mixed_anchors
from metrix.candidates import embedded_candidates, mixed_candidates
from metrix.pairs import Chosen


def mixed_loss(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Chosen | None, renormalize: bool
) -> Tensor:
    """Return ℓ̃ (scalar) at the embedding level, 0 if there is nothing to mix; see `mixed_candidates`."""
    if loss.mixed == "anchors":
        return mixed_anchors(loss, batch, lam, chosen, renormalize)
    return mixed_candidates(loss, batch, pairs, lam, chosen, renormalize)


def embedded_loss(loss: Loss, batch: Batch, mixed: Tensor, pairs: str, lam: float | Tensor, chosen: Chosen) -> Tensor:
    """Return ℓ̃ (scalar) of embedded mixed examples, unit vectors `mixed` (m, d); see `embedded_candidates`."""
    lam = lam.to(mixed) if isinstance(lam, Tensor) else lam
    if loss.mixed == "anchors":
        return embedded_anchors(loss, batch, mixed, lam, *chosen.on(mixed.device))
    return embedded_candidates(loss, batch, mixed, pairs, lam, chosen)
