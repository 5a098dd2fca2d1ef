"""What can be scored: which images have a positive to find, and which K their candidates can answer.

The evaluator refuses a K beyond the candidates, and a split in which no query has a positive. Both are known from
labels and roles alone, so whoever looks at data before a training asks here: the doctor, the plan and the trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.data.datasets._dataset import CUSTOMARY, Dataset
from harness.errors import some


@dataclass(frozen=True)
class Scope:
    """What a scored set of images can answer.

    queries     how many images ask
    answered    how many of them have a positive among their candidates; the others are in no mean
    candidates  the fewest candidates of an answered query: R@K exists for K up to it; 0 where none is answered
    roles       whether queries and gallery are told apart; otherwise every image is both
    """

    queries: int
    answered: int
    candidates: int
    roles: bool = False

    @classmethod
    def of(cls, labels: np.ndarray, roles: np.ndarray | None = None) -> Scope:
        """The scope of images with `labels` (n,), each its own query and candidate of all others.

        With `roles` (n,) of "query" and "gallery", queries search in the gallery alone.
        """
        if roles is None:
            counts = np.bincount(np.unique(labels, return_inverse=True)[1])
            answered = int(counts[counts > 1].sum())
            return cls(len(labels), answered, len(labels) - 1 if answered else 0)
        asked, stock = labels[roles == "query"], labels[roles == "gallery"]
        answered = int(np.isin(asked, stock).sum())
        return cls(len(asked), answered, len(stock) if answered else 0, roles=True)

    def problem(self, split: str) -> str | None:
        """Why nothing can be scored in a split of this name, MAP@R included; None where something can."""
        if self.answered:
            return None
        if self.roles:
            return f"no class has both a query and a gallery image in {split}"
        return f"every class in {split} has one image, so nothing can be retrieved"

    def answerable(self, ks: Iterable[int]) -> tuple[int, ...]:
        """Those of `ks` for which R@K exists."""
        return tuple(k for k in ks if k <= self.candidates)


@dataclass(frozen=True)
class Scores:
    """What a trial will score: `ks` by split, why it cannot (`problems`), and which K are left out (`notes`, by
    split)."""

    ks: dict[str, tuple[int, ...]]
    problems: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def scores(dataset: Dataset, split: np.ndarray, ks: Sequence[int] | None = None, test: bool = True) -> Scores:
    """What can be scored of a dataset under `split` (n,): validation where there is any, and the test split.

    A training split in which no image has a positive is a problem as well: there would be nothing to learn.

    ks    the wanted K of R@K; None: those customary for the dataset on test, 1, 2, 4 and 8 on validation
    test  whether the test split will be read
    """
    found, problems, notes = {}, [], {}
    for name in ("train", "validation", *(["test"] if test else [])):
        images = split == name
        if not images.any():
            continue
        scope = Scope.of(dataset.labels[images], dataset.role[images] if _with_roles(dataset, name) else None)
        wanted = () if name == "train" else tuple(ks or (dataset.ks if name == "test" else CUSTOMARY))
        found[name] = scope.answerable(wanted)
        beyond = [f"R@{k}" for k in wanted if k not in found[name]]
        if problem := scope.problem(name):
            problems.append(f"{dataset.name}: {problem}{_remedy(dataset, images, name)}")
        elif ks and wanted and not found[name]:
            problems.append(
                f"{dataset.name}: none of ks = {list(ks)} can be answered in {name}: a query has {scope.candidates} "
                "candidates"
            )
        elif beyond:
            notes[name] = (
                f"{dataset.name}: {', '.join(beyond)} of {name} left out: a query has {scope.candidates} candidates"
            )
    return Scores(found, tuple(problems), notes)


def _with_roles(dataset: Dataset, name: str) -> bool:
    """Validation images search among each other; roles are those of the test."""
    return name == "test" and dataset.role is not None


def _remedy(dataset: Dataset, images: np.ndarray, name: str) -> str:
    """What to do about validation classes of one image each, which nobody chose."""
    if name != "validation" or (dataset.split == "validation").any():
        return ""
    names = sorted({dataset.class_names[c] for c in dataset.labels[images]})
    return (
        f"; the validation classes follow from the class names ({some(names)}): give some of them a second "
        "image, take them out, or name a validation split in a manifest"
    )
