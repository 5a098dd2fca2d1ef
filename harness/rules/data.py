"""The data are what their name says, and no class is on two sides of a split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.datasets import SPLITS, some
from harness.rules import Results, rule
from harness.rules._subjects import ids

if TYPE_CHECKING:
    from harness.datasets import Dataset
    from harness.record import Record


@dataclass(frozen=True)
class Standard:
    """A published benchmark: (training, test) images and classes, and the sizes of what is taken for it."""

    title: str
    images: tuple[int, int]
    classes: tuple[int, int]
    look_alikes: Mapping[tuple[int, int] | int, str]


CLASSIFICATION = "This is the classification split (same classes in train and test)"
STANDARDS = {
    "cub200": Standard(
        "CUB-200-2011",
        (5_864, 5_924),
        (100, 100),
        {(5_994, 5_794): CLASSIFICATION, 6_033: "These are the birds of 2010 (CUB-200), another edition"},
    ),
    "cars196": Standard("Cars196", (8_054, 8_131), (98, 98), {(8_144, 8_041): CLASSIFICATION}),
    "sop": Standard("Stanford Online Products", (59_551, 60_502), (11_318, 11_316), {}),
    "inshop": Standard("In-Shop Clothes", (25_882, 26_830), (3_997, 3_985), {}),
}


@rule("FAIR-01", "E", over="data")
def benchmark(dataset: Dataset, split: np.ndarray, nonstandard: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A benchmark has its published images and classes, and every row the same copy of the data.

    A number under a benchmark's name is compared with the literature, so it has to come from the same images in the
    same split. Two wrong splits of the birds and the cars go around and give better numbers.
    """
    images = {name: int((split == name).sum()) for name in SPLITS}
    classes = {name: len(np.unique(dataset.labels[split == name])) for name in SPLITS}
    if not nonstandard and (problem := _unlike(dataset.name, images, classes)):
        yield problem, ()


@rule("FAIR-01", "E", over="records")
def same_data(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every row comes from the same copy of the data."""
    wrong: dict[str, list[Record]] = defaultdict(list)
    copies: dict[tuple[str, str], dict[tuple, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in results.records:
        data, chosen = record.data, record.trial.dataset
        if not allowed(record) and (problem := _unlike(chosen.name, data.images, data.classes)):
            wrong[problem].append(record)
        copies[chosen.name, json.dumps(chosen.options, sort_keys=True)][
            data.index_fingerprint, data.pixel_fingerprint
        ].append(record)
    for problem, records in wrong.items():
        yield problem, ids(records)
    for (name, _), by_copy in copies.items():
        if len(by_copy) > 1:
            said = "; ".join(
                f"{print_[:12]}{f' with pixels {pixels[:12]}' if pixels else ''}: {len(records)} records"
                for (print_, pixels), records in by_copy.items()
            )
            fewest = min(by_copy.values(), key=len)
            yield f"{name}: {len(by_copy)} different copies of the data ({said}).", ids(fewest)


@rule("FAIR-01", "W", over="records")
def nonstandard_size(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Rows of a benchmark in another size say so."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        name, data = record.trial.dataset.name, record.data
        if allowed(record) and _unlike(name, data.images, data.classes):
            found[f"{name}: {_sizes(data.images)} images: not {STANDARDS[name].title}."].append(record)
    for sentence, records in found.items():
        yield sentence, ids(records)


def allowed(record: Record) -> bool:
    """Whether the trial asked for a benchmark in another size than the published one."""
    return bool(record.trial.dataset.options.get("allow_nonstandard"))


def _unlike(name: str, images: Mapping[str, int], classes: Mapping[str, int]) -> str | None:
    """What tells these counts from the published ones; None for a dataset that is no published benchmark."""
    standard = STANDARDS.get(name)
    if standard is None:
        return None
    pairs = (("images", images, standard.images), ("classes", classes, standard.classes))
    for what, counts, expected in pairs:
        if _pair(counts) != expected:
            found = _pair(images)
            known = standard.look_alikes.get(found) or standard.look_alikes.get(sum(found))
            wanted = "/".join(map(str, expected))
            return f"{name}: {_sizes(counts)} {what}, expected {wanted}.{f' {known}.' if known else ''}"
    return None


def _pair(counts: Mapping[str, int]) -> tuple[int, int]:
    """Training, of which validation is a part, and test."""
    return counts.get("train", 0) + counts.get("validation", 0), counts.get("test", 0)


def _sizes(counts: Mapping[str, int]) -> str:
    return "/".join(map(str, _pair(counts)))


@rule("FAIR-02", "E", over="data")
def disjoint_classes(dataset: Dataset, split: np.ndarray, nonstandard: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Training, validation and test classes are disjoint.

    Metric learning is judged on classes that were never trained on; a class on both sides rewards remembering it.
    """
    classes = {name: np.unique(dataset.labels[split == name]) for name in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = np.intersect1d(classes[first], classes[second])
        if len(both):
            named = some([dataset.class_names[c] for c in both])
            yield f"{dataset.name}: {_counted(len(both))} in both {first} and {second} ({named}).", ()


@rule("FAIR-02", "E", over="records")
def disjoint_counts(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The classes of the splits add up to those of the dataset."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        data = record.data
        distinct = data.distinct_classes
        if distinct is not None and (twice := sum(data.classes.values()) - distinct) > 0:
            found[f"{record.trial.dataset.name}: {_counted(twice)} in more than one split."].append(record)
    for sentence, records in found.items():
        yield sentence, ids(records)


def _counted(classes: int) -> str:
    return f"{classes} class{'es' * (classes != 1)}"
