"""Outcomes of single test queries, added up by class, for intervals over test classes."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.runs.errors import RunError

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # errors of a damaged file of arrays


@dataclass(frozen=True)
class ByClass:
    """The outcomes of the queries of each class, added up; a score is sums[metric].sum() / counts.sum().

    classes  (C,) labels in order
    counts   (C,) queries of each class
    sums     metric → (C,) sum of the outcomes of each class
    """

    classes: np.ndarray
    counts: np.ndarray
    sums: dict[str, np.ndarray]

    def fits(self, other: "ByClass") -> bool:
        """Return whether both are over the same queries, judged by their classes."""
        return np.array_equal(self.classes, other.classes) and np.array_equal(self.counts, other.counts)


def by_class(path: Path, metrics: tuple[str, ...]) -> ByClass | None:
    """Return the outcomes that a trial stored, for those of `metrics` that it has; None if it stored none.

    Raises RunError, naming the file, if it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            outcomes = {m: stored[f"query {m}"].astype(np.float64) for m in metrics if f"query {m}" in stored}
            if not outcomes:
                return None
            labels = stored["labels"]
            if len(next(iter(outcomes.values()))) != len(labels):  # not every image is a query with a positive
                places = {key: place for place, key in enumerate(stored["ids"].tolist())}
                labels = labels[[places[key] for key in stored["queries"].tolist()]]
    except UNREADABLE as error:
        raise RunError(f"{path} cannot be read as outcomes of queries ({error}); move it away") from None
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = {m: np.bincount(members, weights=values, minlength=len(classes)) for m, values in outcomes.items()}
    return ByClass(classes, counts, sums)


def mean(folds: Sequence[ByClass | None]) -> ByClass | None:
    """Return the outcomes of a seed, the mean over those of its folds; their score is the mean of the folds' scores.

    None if a fold stored none, or stored those of other queries.
    """
    stored = [fold for fold in folds if fold is not None]
    if len(stored) < len(folds) or not all(stored[0].fits(fold) for fold in stored):
        return None
    first, zeros = stored[0], np.zeros(len(stored[0].classes))
    metrics = [metric for metric in first.sums if all(metric in fold.sums for fold in stored)]
    sums = {metric: sum((fold.sums[metric] for fold in stored), start=zeros) / len(stored) for metric in metrics}
    return ByClass(first.classes, first.counts, sums)
