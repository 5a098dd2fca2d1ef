"""Rules about data: benchmarks are the published ones, all rows use the same copy, and no class is in two splits."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from harness.data import datasets
from harness.data.datasets import SPLITS
from harness.errors import first_few
from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import counted, ids

if TYPE_CHECKING:
    from harness.data.datasets import Dataset
    from harness.data.datasets._standard import Standard
    from harness.runs.record import Record


@rule("FAIR-01", "E", over="data")
def benchmark(dataset: Dataset, split: np.ndarray) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A benchmark has its published images and classes, and every row uses the same copy of the data.

    A number under a benchmark's name is compared with the literature, so it must come from the same images in the
    same split. Two wrong splits of CUB-200-2011 and Cars196 are in circulation, and both give better numbers.
    """
    standard = _standard(dataset.name)
    deviations = standard.deviations(dataset) if standard else ()
    if deviations and not dataset.deviations:  # a copy that is allowed to deviate names its deviations itself
        yield f"{dataset.name}: {' '.join(deviations)}", ()


@rule("FAIR-01", "E", over="records")
def same_data(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every row comes from the same copy of the data."""
    for (name, wrong), records in _deviating(results).items():
        unwanted = [record for record in records if not _allowed(record)]
        if unwanted:
            yield f"{name}: {wrong}", ids(unwanted)
    copies: dict[tuple[str, str], dict[tuple, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in results.records:
        data, chosen = record.data, record.trial.dataset
        prints = data.index_fingerprint, data.pixel_fingerprint
        copies[chosen.name, json.dumps(chosen.options, sort_keys=True)][prints].append(record)
    for (name, _), by_copy in copies.items():
        if len(by_copy) > 1:
            copies_listed = "; ".join(
                f"{index[:12]}{f' with pixels {pixels[:12]}' if pixels else ''}: {counted(records)}"
                for (index, pixels), records in by_copy.items()
            )
            fewest = min(by_copy.values(), key=len)
            yield f"{name}: {len(by_copy)} different copies of the data ({copies_listed}).", ids(fewest)


@rule("FAIR-01", "E", over="records")
def same_pixels(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every row uses the same pixels for images of the same name."""
    copies: dict[tuple[str, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in results.records:
        if content := record.data.content_fingerprint:  # older records have none
            images, chosen = record.trial.images, record.trial.dataset
            decoder = record.provenance.get("packages", {}).get("pillow")
            key = chosen.name, record.data.index_fingerprint, images.path, str(images.stored_px), str(decoder)
            copies[key][content].append(record)
    for (name, *_), by_content in copies.items():
        if len(by_content) > 1:
            listed = "; ".join(f"{content[:12]}: {counted(records)}" for content, records in by_content.items())
            fewest = min(by_content.values(), key=len)
            yield f"{name}: {len(by_content)} sets of pixels for the same image names ({listed}).", ids(fewest)


@rule("FAIR-01", "W", over="records")
def nonstandard_size(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Rows of a benchmark in another size are marked."""
    for (name, wrong), records in _deviating(results).items():
        marked, standard = [record for record in records if _allowed(record)], _standard(name)
        if marked and standard:
            yield f"{name}: not {standard.title}: {wrong}", ids(marked)


def unlike(record: Record) -> str:
    """Return `not CUB-200-2011` for a record whose counts are not those of the benchmark it names; else nothing."""
    standard = _standard(record.trial.dataset.name)
    return f"not {standard.title}" if standard and _miscounts(record) else ""


def _deviating(results: Results) -> dict[tuple[str, str], list[Record]]:
    """Return (dataset, what is wrong) → records of a benchmark whose counts are not the published ones."""
    by_problem: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in results.records:
        if wrong := _miscounts(record):
            by_problem[record.trial.dataset.name, " ".join(wrong)].append(record)
    return by_problem


def _miscounts(record: Record) -> tuple[str, ...]:
    """Return how the counts of a record differ from those of the benchmark it names, as sentences."""
    standard, data = _standard(record.trial.dataset.name), record.data
    return tuple(standard.miscounted(_pair(data.images), _pair(data.classes))) if standard else ()


@functools.cache  # reports call it for each record, and the register lists its folder every time
def _standard(name: str) -> Standard | None:
    """Return the published benchmark of this name; None for any other dataset, even one that no longer exists."""
    return datasets.standard(name) if name in datasets.names() else None


def _allowed(record: Record) -> bool:
    """Return whether the trial allows another size than the published one."""
    return bool(record.trial.dataset.options.get("allow_nonstandard"))


def _pair(counts: Mapping[str, int]) -> tuple[int, int]:
    """Return the counts of training, including validation, and of test."""
    return counts.get("train", 0) + counts.get("validation", 0), counts.get("test", 0)


@rule("FAIR-02", "E", over="data")
def disjoint_classes(dataset: Dataset, split: np.ndarray) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Training, validation and test classes are disjoint.

    Metric learning is evaluated on classes that were not trained on. A class in two splits rewards memorising it.
    """
    classes = {name: np.unique(dataset.labels[split == name]) for name in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = np.intersect1d(classes[first], classes[second])
        if len(both):
            named = first_few([dataset.class_names[c] for c in both])
            yield f"{dataset.name}: {_classes(len(both))} in both {first} and {second} ({named}).", ()


@rule("FAIR-02", "E", over="records")
def disjoint_counts(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The classes of the splits add up to those of the dataset."""
    by_problem: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        data = record.data
        distinct = data.distinct_classes
        if distinct is not None and (twice := sum(data.classes.values()) - distinct) > 0:
            by_problem[f"{record.trial.dataset.name}: {_classes(twice)} in more than one split."].append(record)
    for sentence, records in by_problem.items():
        yield sentence, ids(records)


def _classes(count: int) -> str:
    return f"{count} class{'es' * (count != 1)}"
