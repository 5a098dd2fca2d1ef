"""What can be scored: which images have a positive, and for which K their candidates suffice.

The evaluator rejects a K beyond the number of candidates, and a split in which no query has a positive. Labels and
roles are enough to know both, so the doctor, the plan and the trial check them here before a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.data.datasets._dataset import USUAL_KS, Dataset
from harness.data.scope import Scope
from harness.errors import first_few


@dataclass(frozen=True)
class Scores:
    """What a trial will score: the K of R@K by split, problems that prevent it, and notes on omitted K by split."""

    ks: dict[str, tuple[int, ...]]
    problems: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def scores(dataset: Dataset, split: np.ndarray, ks: Sequence[int] | None = None, test: bool = True) -> Scores:
    """Return what can be scored of a dataset under `split` (n,): validation, if there is any, and the test split.

    A training split in which no image has a positive is a problem too, because there would be nothing to learn.

    ks    the wanted K of R@K; None means the dataset's usual K on test, and 1, 2, 4 and 8 on validation
    test  whether the test split will be read
    """
    answerable, problems, notes = {}, [], {}
    for name in ("train", "validation", *(["test"] if test else [])):
        images = split == name
        if not images.any():
            continue
        # Validation images search among each other; roles are those of the test split.
        role = None if dataset.role is None or name != "test" else dataset.role[images]
        scope = Scope.of(dataset.labels[images], role)
        wanted = () if name == "train" else tuple(ks or (dataset.ks if name == "test" else USUAL_KS))
        answerable[name] = scope.answerable(wanted)
        beyond = [f"R@{k}" for k in wanted if k not in answerable[name]]
        if problem := scope.problem(name):
            problems.append(f"{dataset.name}: {problem}{_remedy(dataset, images, name)}")
        elif ks and wanted and not answerable[name]:
            problems.append(
                f"{dataset.name}: none of ks = {list(ks)} can be answered in {name}: a query has {scope.candidates} "
                "candidates"
            )
        elif beyond:
            notes[name] = (
                f"{dataset.name}: {', '.join(beyond)} of {name} left out: a query has {scope.candidates} candidates"
            )
    return Scores(answerable, tuple(problems), notes)


def _remedy(dataset: Dataset, images: np.ndarray, name: str) -> str:
    """Return what to do about validation classes of one image each, if they were chosen automatically."""
    if name != "validation" or (dataset.split == "validation").any():
        return ""
    names = sorted({dataset.class_names[c] for c in dataset.labels[images]})
    return (
        f"; the validation classes are chosen by class name ({first_few(names)}): add a second image to some of "
        "them, remove them, or define a validation split in a manifest"
    )
