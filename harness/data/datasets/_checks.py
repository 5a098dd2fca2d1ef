"""Checks that a dataset must pass to be trained on and scored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.data.datasets import _labels
from harness.data.datasets._dataset import ROLES, SPLITS, Dataset, DatasetError
from harness.data.scope import Scope
from harness.errors import first_few


def check(dataset: Dataset) -> None:
    """Raise DatasetError with all `problems` of a dataset, if it has any."""
    if sentences := problems(dataset):
        raise DatasetError("\n  ".join(sentences))


def problems(dataset: Dataset) -> list[str]:
    """Return why a dataset cannot be trained on or scored, one sentence each.

    The checks: no images; an image listed twice; names that are not UTF-8; labels that look alike; fewer than two
    classes in a split; a class in two splits; a split with one image per class; query and gallery roles under which
    no query has a positive.
    """
    if not len(dataset):
        return [f"{dataset.name}: no images"]
    checks = (_listed_twice, _name_problems, _label_problems, _split_problems, _role_problems)
    return [sentence for check in checks for sentence in check(dataset)]


def _listed_twice(dataset: Dataset) -> Iterator[str]:
    if len(set(dataset.keys)) < len(dataset):
        seen: set[str] = set()
        twice = [key for key in dataset.keys if key in seen or seen.add(key)]
        yield f"{dataset.name}: {len(twice)} images are listed twice ({first_few(twice)})"


def _name_problems(dataset: Dataset) -> Iterator[str]:
    """Yield a problem for names that are not UTF-8, because records, tables and pages must be."""
    if invalid := [key for key in dataset.keys if not _labels.utf8(key)]:
        names = first_few(invalid)
        yield (
            f"{dataset.name}: {len(invalid)} files have names that are not UTF-8 ({names}): rename them, "
            "for example with convmv -f latin1 -t utf8 -r --notest FOLDER"
        )


def _label_problems(dataset: Dataset) -> Iterator[str]:
    """Yield problems for labels with invisible characters, and for labels that look alike."""
    labels = [label for label in dataset.class_names if _labels.utf8(label)]
    if faults := [fault for label in labels if (fault := _labels.fault(label))]:
        what = "labels begin or end with a space, or contain invisible characters"
        yield f"{dataset.name}: {len(faults)} {what}: {first_few(faults)}"
    if groups := _labels.look_alikes(labels):
        named = [" and ".join(map(_labels.shown, group)) for group in groups]
        yield f"{dataset.name}: labels that {_labels.ALIKE}: {first_few(named)}. {_labels.REMEDY}"


def _split_problems(dataset: Dataset) -> Iterator[str]:
    classes = {split: np.unique(dataset.labels[dataset.split == split]) for split in SPLITS}
    for split in SPLITS:
        absent = split == "validation" and not len(classes[split])
        if len(classes[split]) < 2 and not absent:
            yield f"{dataset.name}: {len(classes[split])} classes in {split}, at least 2 are needed"
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = np.intersect1d(classes[first], classes[second])
        if len(both):
            named = first_few([dataset.class_names[c] for c in both])
            yield f"FAIR-02 {dataset.name}: {len(both)} classes in both {first} and {second} ({named})"
    for split in SPLITS:
        if len(classes[split]) and (problem := Scope.of(dataset.labels[dataset.split == split]).problem(split)):
            yield f"{dataset.name}: {problem}"


def _role_problems(dataset: Dataset) -> Iterator[str]:
    if dataset.role is None:
        return
    test = dataset.split == "test"
    if not np.isin(dataset.role[test], ROLES).all():
        blank = [dataset.keys[i] for i in np.flatnonzero(test & ~np.isin(dataset.role, ROLES))]
        yield f"{dataset.name}: {len(blank)} test images are neither query nor gallery ({first_few(blank)})"
    if problem := Scope.of(dataset.labels[test], dataset.role[test]).problem("test"):
        yield f"{dataset.name}: {problem}"
