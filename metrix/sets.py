"""The mixed sets of clean anchors, and their similarities without a single mixed vector.

With v = λz_i + (1−λ)z_j, re-normalised,

    s(a, v) = (λ s(a,i) + (1−λ) s(a,j)) / √(λ² + (1−λ)² + 2λ(1−λ) s(i,j)),

so the similarities of all mixed examples follow from those of the clean batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from baselines.chunks import Rows
from baselines.form import Batch, Loss, moved
from baselines.numerics import clamped_, cosine
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
        places = self.first[:, :, None] * len(matrix) + self.second[:, None, :]
        return matrix.flatten().index_select(0, places.flatten()).view(places.shape)


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
        """Return the similarities of the anchors to mixed examples (a, f, s), from those to clean ones (a, n).

        `inverse` holds the inverse norms of the pairs; None means no re-normalisation.
        """
        first = second = similarities
        if self.places.own:
            first = similarities.new_ones(len(similarities), 1)
        elif self.places.first is not None:
            first = similarities.gather(1, self.places.first)
        if self.places.second is not None:
            second = similarities.gather(1, self.places.second)
        first, second, lam = first[:, :, None], second[:, None, :], self.label()
        mixed = first * lam + second * (1 - lam)
        return mixed if inverse is None else clamped_(mixed * self.places.of_pairs(inverse))

    def inverse_norms(self, loss: Loss, batch: Batch, similarities: Tensor) -> Tensor:
        """Return the inverse norms of the mixed embeddings: (n, n), or (a, n) if anchors are mixed themselves."""
        if self.places.own or loss.anchors == "examples":
            return inverse_norms(self.lam, similarities)
        return inverse_norms(self.lam, cosine(batch.embeddings, batch.embeddings))
