"""The data are what their name says, and no class is on two sides of a split."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from harness.data import datasets
from harness.data.datasets import SPLITS
from harness.errors import some
from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import ids

if TYPE_CHECKING:
    from harness.data.datasets import Dataset
    from harness.data.datasets._standard import Standard
    from harness.runs.record import Record


@rule("FAIR-01", "E", over="data")
def benchmark(dataset: Dataset, split: np.ndarray) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A benchmark has its published images and classes, and every row the same copy of the data.

    A number under a benchmark's name is compared with the literature, so it has to come from the same images in the
    same split. Two wrong splits of the birds and the cars go around and give better numbers.
    """
    standard = _standard(dataset.name)
    deviations = standard.deviations(dataset) if standard else ()
    if deviations and not dataset.deviations:  # a copy that may deviate says so itself
        yield f"{dataset.name}: {' '.join(deviations)}", ()


@rule("FAIR-01", "E", over="records")
def same_data(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every row comes from the same copy of the data."""
    for (name, wrong), records in _deviating(results).items():
        strange = [record for record in records if not _allowed(record)]
        if strange:
            yield f"{name}: {wrong}", ids(strange)
    copies: dict[tuple[str, str], dict[tuple, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in results.records:
        data, chosen = record.data, record.trial.dataset
        prints = data.index_fingerprint, data.pixel_fingerprint
        copies[chosen.name, json.dumps(chosen.options, sort_keys=True)][prints].append(record)
    for (name, _), by_copy in copies.items():
        if len(by_copy) > 1:
            said = "; ".join(
                f"{index[:12]}{f' with pixels {pixels[:12]}' if pixels else ''}: {len(records)} records"
                for (index, pixels), records in by_copy.items()
            )
            fewest = min(by_copy.values(), key=len)
            yield f"{name}: {len(by_copy)} different copies of the data ({said}).", ids(fewest)


@rule("FAIR-01", "E", over="records")
def same_pixels(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every row has the same pixels under the same names of images."""
    copies: dict[tuple[str, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in results.records:
        if content := record.data.content_fingerprint:  # older records do not tell
            images, chosen = record.trial.images, record.trial.dataset
            decoder = record.provenance.get("packages", {}).get("pillow")
            key = chosen.name, record.data.index_fingerprint, images.path, str(images.stored_px), str(decoder)
            copies[key][content].append(record)
    for (name, *_), by_content in copies.items():
        if len(by_content) > 1:
            said = "; ".join(f"{content[:12]}: {len(records)} records" for content, records in by_content.items())
            fewest = min(by_content.values(), key=len)
            yield f"{name}: {len(by_content)} sets of pixels under the same names of images ({said}).", ids(fewest)


@rule("FAIR-01", "W", over="records")
def nonstandard_size(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Rows of a benchmark in another size say so."""
    for (name, wrong), records in _deviating(results).items():
        marked = [record for record in records if _allowed(record)]
        if marked:
            yield f"{name}: not {datasets.standard(name).title}: {wrong}", ids(marked)


def unlike(record: Record) -> str:
    """`not CUB-200-2011` of a record under the name of a benchmark whose counts it does not have; else nothing."""
    return f"not {_standard(record.trial.dataset.name).title}" if _miscounts(record) else ""


def _deviating(results: Results) -> dict[tuple[str, str], list[Record]]:
    """Records of published benchmarks with other counts than the published: {(dataset, what is wrong): records}."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in results.records:
        if wrong := _miscounts(record):
            found[record.trial.dataset.name, " ".join(wrong)].append(record)
    return found


def _miscounts(record: Record) -> tuple[str, ...]:
    """In what the counts of a record differ from those of the published benchmark of its name, a sentence each."""
    standard, data = _standard(record.trial.dataset.name), record.data
    return tuple(standard.miscounted(_pair(data.images), _pair(data.classes))) if standard else ()


@functools.cache  # reports ask for each record, and the register looks into its folder every time
def _standard(name: str) -> Standard | None:
    """The published benchmark of this name; None for other datasets, those that no longer exist among them."""
    return datasets.standard(name) if name in datasets.names() else None


def _allowed(record: Record) -> bool:
    """Whether the trial asked for a benchmark in another size than the published one."""
    return bool(record.trial.dataset.options.get("allow_nonstandard"))


def _pair(counts: Mapping[str, int]) -> tuple[int, int]:
    """Training, of which validation is a part, and test."""
    return counts.get("train", 0) + counts.get("validation", 0), counts.get("test", 0)


@rule("FAIR-02", "E", over="data")
def disjoint_classes(dataset: Dataset, split: np.ndarray) -> Iterator[tuple[str, tuple[str, ...]]]:
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
