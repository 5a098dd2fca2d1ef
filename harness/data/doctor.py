"""Is my copy of a dataset right? Counts, files, splits and duplicates, in words that say what to do.

`examine` looks at a copy as it lies on the disk and finds all that is wrong with it: what `datasets.load` and the
split of a run refuse, which can be told without reading the images, and every image that training could not decode.
Published benchmarks are held against the standard copy (FAIR-01).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from harness.data import datasets, scorable, splits
from harness.data.datasets import ArgumentError, Dataset, DatasetError, printable, some
from harness.data.datasets._decode import decode
from harness.data.datasets._files import missing_files

if TYPE_CHECKING:
    from PIL import Image

FILES_AT_ONCE = 200  # that a thread looks at before it reports
MISSING = "is missing"


@dataclass(frozen=True)
class Finding:
    """Something about a copy: E has to be put right before it runs, W is worth knowing."""

    severity: Literal["E", "W"]
    sentence: str


@dataclass(frozen=True)
class Examination:
    """What a copy of a dataset holds, and what is wrong with it.

    counts, expected: (images, classes) of train, validation and test, or of query and gallery instead; `expected` is
    of the standard copy, {} where there is none.
    """

    name: str
    title: str  # of the published benchmark, or the name
    counts: dict[str, tuple[int, int]]
    expected: dict[str, tuple[int, int]]
    fingerprint: str | None  # of keys, classes, splits and roles; None where no index can be made
    unreadable: tuple[str, ...]  # which images, and why
    findings: tuple[Finding, ...]
    advice: str  # what goes where and where it can be found; "" where nobody knows

    @property
    def sound(self) -> bool:
        """Whether nothing stands against using the copy."""
        return not any(finding.severity == "E" for finding in self.findings)


class Look(NamedTuple):
    """What looking at an image gave: why it cannot be read ("" if it can), and a digest of its content."""

    problem: str
    digest: bytes


def examine(
    name: str,
    data: Path | str | None = None,
    cache: Path | str | None = None,
    *,
    thorough: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options,
) -> Examination:
    """Look at a copy of a dataset; nothing is raised about the data, all that is wrong with them is found.

    name, data, cache, options: as for `datasets.load`.
    thorough: call images equal whose pixels are, whatever the kind of file, and not only equal files.
    progress: called with (images looked at, images in all).

    Raise DatasetError for a dataset that does not exist, ArgumentError for options and a folder that do not.
    """
    standard = datasets.standard(name)
    title, advice = (standard.title, standard.advice) if standard else (name, "")
    expected = _expected(name)
    try:
        dataset = datasets.index(name, data, cache, **options)
    except ArgumentError as error:
        raise ArgumentError("\n".join(filter(None, (str(error), "" if data else advice)))) from None
    except DatasetError as error:
        sentence = str(error).removesuffix(advice).rstrip()
        return Examination(name, title, {}, expected, None, (), (Finding("E", sentence),), advice)
    findings = [Finding("E", sentence) for sentence in datasets.problems(dataset)]
    findings = findings or [*_scored(dataset)]
    findings += [Finding("W", f"{name}: {passed}") for passed in dataset.passed_over]
    if standard and (deviations := standard.deviations(dataset)):
        severity = "W" if options.get("allow_nonstandard") else "E"
        findings.append(Finding(severity, f"FAIR-01 {name}: {' '.join(deviations)} This is not {title}."))
    looks = []
    for look in _looks(dataset, thorough):
        looks.append(look)
        if progress is not None:
            progress(len(looks), len(dataset))
    how = "pixel for pixel" if thorough or dataset.files is None else "byte for byte"
    findings += [*_file_findings(dataset, looks), *_duplicates(dataset, looks, how)]
    unreadable = tuple(look.problem for look in looks if look.problem not in ("", MISSING))
    return Examination(
        name, title, _counts(dataset), expected, dataset.index_fingerprint, unreadable, tuple(findings), advice
    )


def _scored(dataset: Dataset) -> Iterator[Finding]:
    """What cannot be scored of a sound index under the fair protocol's split, and which K its test cannot answer."""
    try:
        split = splits.fair_validation(dataset)
    except DatasetError as error:
        yield Finding("E", str(error))
        return
    scores = scorable.scores(dataset, split)
    yield from (Finding("E", problem) for problem in scores.problems)
    if note := scores.notes.get("test"):
        yield Finding("W", note)


def _counts(dataset: Dataset) -> dict[str, tuple[int, int]]:
    parts = dataset.split if dataset.role is None else np.where(dataset.role == "", dataset.split, dataset.role)
    order = [*datasets.SPLITS, *datasets.ROLES]
    return {
        part: (int((parts == part).sum()), len(np.unique(dataset.labels[parts == part])))
        for part in sorted(set(parts.tolist()), key=order.index)
    }


def _expected(name: str) -> dict[str, tuple[int, int]]:
    standard = datasets.standard(name)
    if standard is None:
        return {}
    train, test = zip(standard.images, standard.classes, strict=True)
    roles = {role: (images, test[1]) for role, images in standard.roles.items()}
    return {"train": train, **(roles or {"test": test})}


def _looks(dataset: Dataset, thorough: bool) -> Iterator[Look]:
    """A look at every image, in order, on all cores: reading and hashing need no interpreter."""
    look = partial(_look_at_image, dataset) if dataset.files is None else partial(_look_at_file, dataset, thorough)
    every = range(len(dataset))
    parts = [every[start : start + FILES_AT_ONCE] for start in range(0, len(every), FILES_AT_ONCE)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for found in threads.map(lambda part: [look(i) for i in part], parts):
            yield from found


def _look_at_image(dataset: Dataset, i: int) -> Look:
    """A look at an image that is no file of its own."""
    try:
        image = dataset.read(i)
    except DatasetError as error:
        return Look(str(error), b"")
    return Look("", _pixels_digest(image))


def _look_at_file(dataset: Dataset, thorough: bool, i: int) -> Look:
    """A look at an image file, which is read once and decoded as training does it."""
    key, path = printable(dataset.keys[i]), dataset.files[i]
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            return Look(f"{key}: not a file", b"")
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Look(MISSING, b"")
    except OSError as error:
        return Look(f"{key}: {error.strerror}", b"")
    if not content:
        return Look(f"{key}: the file is empty", b"")
    try:
        image = decode(io.BytesIO(content), key)
    except DatasetError as error:
        return Look(str(error), b"")
    return Look("", _pixels_digest(image) if thorough else _digest(content))


def _pixels_digest(image: Image.Image) -> bytes:
    """Of the picture in colour: a grey one is the same whether it is stored in one channel or in three."""
    return _digest(repr(image.size).encode() + image.convert("RGB").tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _file_findings(dataset: Dataset, looks: list[Look]) -> Iterator[Finding]:
    missing = [key for key, look in zip(dataset.keys, looks, strict=True) if look.problem == MISSING]
    if missing:
        yield Finding("E", missing_files(dataset, missing))
    broken = [look.problem for look in looks if look.problem not in ("", MISSING)]
    if broken:
        yield Finding("E", f"{dataset.name}: {len(broken)} of {len(dataset)} images cannot be read ({some(broken)})")


def _duplicates(dataset: Dataset, looks: list[Look], how: str) -> Iterator[Finding]:
    """Images that lie in two splits, or under two labels of one split; `how` says in what they are equal."""
    first: dict[bytes, int] = {}
    in_two_splits, under_two_labels = [], []
    for i, (_, digest) in enumerate(looks):
        j = first.setdefault(digest, i)
        if digest and dataset.split[i] != dataset.split[j]:
            in_two_splits.append(f"{dataset.keys[j]} = {dataset.keys[i]}")
        elif digest and dataset.labels[i] != dataset.labels[j]:
            under_two_labels.append(f"{dataset.keys[j]} = {dataset.keys[i]}")
    for pairs, where in ((in_two_splits, "in two splits"), (under_two_labels, "under two labels of a split")):
        if pairs:
            yield Finding("W", f"{dataset.name}: {len(pairs)} images are {where}, {how} ({some(pairs)})")
