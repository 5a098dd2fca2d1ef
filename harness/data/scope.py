"""Which queries of a set of images can be answered, and for which K: labels and roles are enough to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scope:
    """What can be scored in a set of images.

    queries     the number of query images
    answered    how many of them have a positive among their candidates; the others are left out of means
    candidates  the fewest candidates of an answered query: R@K exists for K up to it; 0 if none is answered
    roles       whether queries and gallery are separate; otherwise every image is both
    """

    queries: int
    answered: int
    candidates: int
    roles: bool = False

    @classmethod
    def of(cls, labels: np.ndarray, roles: np.ndarray | None = None) -> Scope:
        """Return the scope of images with `labels` (n,), each of which is a query and a candidate for all others.

        With `roles` (n,) of "query" and "gallery", queries search only in the gallery.
        """
        if roles is None:
            counts = np.bincount(np.unique(labels, return_inverse=True)[1])
            answered = int(counts[counts > 1].sum())
            return cls(len(labels), answered, len(labels) - 1 if answered else 0)
        queries, gallery = labels[roles == "query"], labels[roles == "gallery"]
        answered = int(np.isin(queries, gallery).sum())
        return cls(len(queries), answered, len(gallery) if answered else 0, roles=True)

    def problem(self, split: str) -> str | None:
        """Return why nothing can be scored in the split of this name; None if something can."""
        if self.answered:
            return None
        if self.roles:
            return f"no class in {split} has both a query and a gallery image"
        return f"every class in {split} has one image, so nothing can be retrieved"

    def answerable(self, ks: Iterable[int]) -> tuple[int, ...]:
        """Return those of `ks` for which R@K exists."""
        return tuple(k for k in ks if k <= self.candidates)
