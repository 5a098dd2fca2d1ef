"""Outcomes of single test queries, added up by class: what intervals over test queries are made of."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.runs.errors import RunError

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what a damaged file of arrays raises


@dataclass(frozen=True)
class ByClass:
    """Per metric the outcomes of a class's queries added up, and how many queries each class has.

    classes (C,) the labels in order, counts (C,), sums {"R@1": (C,)}; a score is sums.sum() / counts.sum().
    """

    classes: np.ndarray
    counts: np.ndarray
    sums: dict[str, np.ndarray]

    def fits(self, other: "ByClass") -> bool:
        """Whether both are of the same queries, as far as their classes tell."""
        return np.array_equal(self.classes, other.classes) and np.array_equal(self.counts, other.counts)


def by_class(path: Path, metrics: tuple[str, ...]) -> ByClass | None:
    """The outcomes that a trial stored, of those `metrics` that it has; None where it stored none.

    Raises RunError naming the file where it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {m: stored[f"query {m}"].astype(np.float64) for m in metrics if f"query {m}" in stored}
            if not found:
                return None
            labels = stored["labels"]
            if len(next(iter(found.values()))) != len(labels):  # some images are no query, or had no positive
                places = {key: place for place, key in enumerate(stored["ids"].tolist())}
                labels = labels[[places[key] for key in stored["queries"].tolist()]]
    except UNREADABLE as error:
        raise RunError(f"{path} cannot be read as outcomes of queries ({error}); move it away") from None
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = {m: np.bincount(members, weights=values, minlength=len(classes)) for m, values in found.items()}
    return ByClass(classes, counts, sums)


def mean(folds: Sequence[ByClass | None]) -> ByClass | None:
    """The outcomes of a seed from those of its folds, over the same queries: their score is the mean of the folds'.

    None where a fold kept none, or kept those of other queries.
    """
    first = folds[0]
    if first is None or any(some is None or not first.fits(some) for some in folds):
        return None
    metrics = [metric for metric in first.sums if all(metric in some.sums for some in folds)]
    sums = {metric: sum(some.sums[metric] for some in folds) / len(folds) for metric in metrics}
    return ByClass(first.classes, first.counts, sums)
