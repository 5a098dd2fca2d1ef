"""The mixed sets of clean anchors, and their similarities without a single mixed vector.

With v = λz_i + (1−λ)z_j, re-normalised,

    s(a, v) = (λ s(a,i) + (1−λ) s(a,j)) / √(λ² + (1−λ)² + 2λ(1−λ) s(i,j)),

so the similarities of all mixed examples follow from those of the clean batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from baselines.chunks import Rows
from baselines.form import Batch, Loss, moved
from baselines.numerics import first_derivative_only
from metrix.norms import inverse_norms


def lists(mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the columns where each row of mask (a, n) is true, (a, l), and which are not padding (None: all).

    The mask is in host memory, the result on the device.
    """
    counts = mask.sum(1)
    rows, columns = mask.nonzero(as_tuple=True)
    longest = int(counts.max()) if len(counts) else 0
    if len(columns) == longest * len(mask):
        return moved(columns.view(len(mask), longest), device), None
    places = torch.arange(len(columns)) - (counts.cumsum(0) - counts)[rows]
    index = torch.zeros(len(mask), longest, dtype=torch.long)
    valid = torch.zeros_like(index, dtype=torch.bool)
    index[rows, places], valid[rows, places] = columns, True
    return moved(index, device), moved(valid, device)


@dataclass(frozen=True)
class Places:
    """Which columns of the similarities (a, n) are mixed with each other: f × s mixed examples for each anchor.

    `first` (a, f) and `second` (a, s) hold the columns; None means all n in order. With `own`, the first of each pair
    is the anchor itself, and a matrix of pairs is (a, n) instead of (n, n).
    """

    first: Tensor | None = None
    second: Tensor | None = None
    own: bool = False

    def rows(self, rows: Rows) -> Places:
        """Return the places of the anchors `rows`."""
        first, second = (None if x is None else x[rows] for x in (self.first, self.second))
        return Places(first, second, self.own)

    def of_pairs(self, matrix: Tensor) -> Tensor:
        """Return the entries of a matrix (n, n) at the pairs of the mixed examples, broadcastable to (a, f, s)."""
        if self.own:
            return matrix[:, None, :]
        if self.first is None:
            return matrix[None]
        if self.second is None:
            return matrix.index_select(0, self.first.flatten()).view(*self.first.shape, -1)
        return matrix[self.first[:, :, None], self.second[:, None, :]]

    def to_pairs(self, gradient: Tensor, n: int) -> Tensor:
        """Apply the adjoint of `of_pairs`: add a gradient (a, f, s) up where its entries were read."""
        if self.own:
            return gradient[:, 0]
        if self.first is None:
            return gradient.sum(0)
        if self.second is None:
            return gradient.new_zeros(n, n).index_add_(0, self.first.flatten(), gradient.flatten(0, 1))
        place = self.first[:, :, None] * n + self.second[:, None, :]
        return gradient.new_zeros(n * n).index_add_(0, place.flatten(), gradient.flatten()).view(n, n)


@dataclass(frozen=True)
class MixedSets:
    """The mixed sets of anchors: which examples are mixed, and which of the mixed ones are members.

    `first` (a, f), `second` (a, s) and `chosen` (a matrix of pairs) are log masks: 0 for members, −∞ for the others.
    None means that all are members. A first dimension of 1 is shared by all anchors. `distinct` says that both lists
    are the same and no example is mixed with itself. `lam` is λ, one number or a matrix of pairs. `negatives` (a, n)
    is the mask of the negatives in host memory.
    """

    places: Places
    first: Tensor | None
    second: Tensor | None
    chosen: Tensor | None
    distinct: bool
    lam: float | Tensor
    negatives: Tensor

    def rows(self, rows: Rows) -> MixedSets:
        """Return the sets of the anchors `rows`. If it is a tensor of indices, not a slice, these have equal sets."""
        first, second = (None if x is None else x[rows] for x in (self.first, self.second))
        if isinstance(rows, Tensor):
            first, second = (None if x is None else x[:1] for x in (first, second))
        chosen, lam = self.chosen, self.lam
        if self.places.own:
            chosen = None if chosen is None else chosen[rows]
            lam = lam[rows] if isinstance(lam, Tensor) else lam
        return replace(self, places=self.places.rows(rows), first=first, second=second, chosen=chosen, lam=lam)

    def log_mask(self, like: Tensor) -> Tensor:
        """Return the log mask of the members, broadcastable to the similarities (a, f, s) `like`."""
        conditions = (
            None if self.first is None else self.first[:, :, None],
            None if self.second is None else self.second[:, None, :],
            None if self.chosen is None else self.places.of_pairs(self.chosen),
        )
        conditions = [c for c in conditions if c is not None] or [like.new_zeros(1, *like.shape[1:])]
        members = reduce(torch.add, conditions)
        if self.distinct:  # `members` is a new tensor here, a sum or just gathered, so no shared one is changed
            members.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return members

    def label(self) -> float | Tensor:
        """Return λ, broadcastable to (a, f, s)."""
        return self.places.of_pairs(self.lam) if isinstance(self.lam, Tensor) else self.lam

    def similarities(self, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        """Return the similarities of the anchors to mixed examples (a, f, s), from those to clean ones (a, n)."""
        return _Mix.apply(similarities, inverse, self.places, self.lam)

    def inverse_norms(self, loss: Loss, batch: Batch, similarities: Tensor) -> Tensor:
        """Return the inverse norms of the mixed embeddings: (n, n), or (a, n) if anchors are mixed themselves."""
        if self.places.own or loss.anchors == "examples":
            return inverse_norms(self.lam, cosines=similarities)
        return inverse_norms(self.lam, vectors=batch.embeddings)


class _Mix(Function):
    """Compute the similarities (a, f, s) of anchors to their mixed examples, from those to the clean ones (a, n).

    `inverse` holds the inverse norms of the pairs; None means no re-normalisation.
    """

    @staticmethod
    def forward(
        ctx: Any, similarities: Tensor, inverse: Tensor | None, places: Places, lam: float | Tensor
    ) -> Tensor:
        second = similarities if places.second is None else similarities.gather(1, places.second)
        if places.own:
            first = similarities.new_ones(len(similarities), 1)
        else:
            first = similarities if places.first is None else similarities.gather(1, places.first)
        first, second = first[:, :, None], second[:, None, :]
        lam = places.of_pairs(lam) if isinstance(lam, Tensor) else lam
        if isinstance(lam, Tensor):
            mixed = first * lam + second * (1 - lam)
        else:
            mixed = torch.add(first * lam, second, alpha=1 - lam)
        inverse = None if inverse is None else places.of_pairs(inverse)
        ctx.lam, ctx.places, ctx.shape = lam, places, similarities.shape
        ctx.save_for_backward(None if inverse is None else mixed, inverse)
        return mixed if inverse is None else (mixed * inverse).clamp_(-1.0, 1.0)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mixed, inverse = ctx.saved_tensors
        places: Places = ctx.places
        lam: float | Tensor = ctx.lam
        towards_inverse = None
        if inverse is not None:
            towards_inverse = places.to_pairs(gradient * mixed, ctx.shape[1])
            gradient = gradient * inverse
        if isinstance(lam, Tensor):
            weighted = gradient * lam
            first, second = weighted.sum(2), (gradient - weighted).sum(1)
        else:
            first, second = gradient.sum(2).mul_(lam), gradient.sum(1).mul_(1 - lam)
        if places.second is not None:
            second = second.new_zeros(ctx.shape).scatter_add_(1, places.second, second)
        if not places.own:
            second = second + first if places.first is None else second.scatter_add_(1, places.first, first)
        return second, towards_inverse, None, None
