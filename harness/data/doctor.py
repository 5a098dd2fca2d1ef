"""Check a copy of a dataset: counts, files, splits and duplicates, and what to do about problems.

`examine` finds everything that is wrong with a copy on the disk: what `datasets.load` and the split of a run would
reject without reading the images, and every image that training could not decode. Published benchmarks are compared
with the standard copy (FAIR-01).
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
from harness.data.datasets import ArgumentError, Dataset, DatasetError
from harness.data.datasets._decode import decode
from harness.data.datasets._files import missing_files
from harness.errors import first_few, printable

if TYPE_CHECKING:
    from PIL import Image

FILES_AT_ONCE = 200  # per thread before it reports progress
MISSING = "is missing"


@dataclass(frozen=True)
class Finding:
    """A finding about a copy: E must be fixed before a run, W is a warning."""

    severity: Literal["E", "W"]
    sentence: str


@dataclass(frozen=True)
class Examination:
    """What a copy of a dataset contains, and what is wrong with it.

    counts, expected: (images, classes) of train, validation and test, or of query and gallery instead; `expected`
    belongs to the standard copy, {} if there is none.
    """

    name: str
    title: str  # of the published benchmark, or the name
    counts: dict[str, tuple[int, int]]
    expected: dict[str, tuple[int, int]]
    fingerprint: str | None  # of keys, classes, splits and roles; None if no index can be made
    unreadable: tuple[str, ...]  # which images, and why
    findings: tuple[Finding, ...]
    advice: str  # what goes where and where to get it; "" if unknown

    @property
    def sound(self) -> bool:
        """Return whether the copy can be used."""
        return not any(finding.severity == "E" for finding in self.findings)


class ImageCheck(NamedTuple):
    """The result of checking an image: why it cannot be read ("" if it can), and a digest of its content."""

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
    """Check a copy of a dataset and return all problems of the data instead of raising them.

    name, data, cache, options: as for `datasets.load`.
    thorough: compare images by their pixels, in any file format, instead of by the bytes of their files.
    progress: called with (checked images, all images).

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
    findings = findings or [*_scoring_findings(dataset)]
    findings += [Finding("W", f"{name}: {ignored}") for ignored in dataset.passed_over]
    if standard and (deviations := standard.deviations(dataset)):
        severity = "W" if options.get("allow_nonstandard") else "E"
        findings.append(Finding(severity, f"FAIR-01 {name}: {' '.join(deviations)} This is not {title}."))
    checks = []
    for check in _checks(dataset, thorough):
        checks.append(check)
        if progress is not None:
            progress(len(checks), len(dataset))
    how = "pixel for pixel" if thorough or dataset.files is None else "byte for byte"
    findings += [*_file_findings(dataset, checks), *_duplicates(dataset, checks, how)]
    unreadable = tuple(check.problem for check in checks if check.problem not in ("", MISSING))
    return Examination(
        name, title, _counts(dataset), expected, dataset.index_fingerprint, unreadable, tuple(findings), advice
    )


def _scoring_findings(dataset: Dataset) -> Iterator[Finding]:
    """Yield what cannot be scored of a valid index under the fair protocol, and the K that its test omits."""
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


def _checks(dataset: Dataset, thorough: bool) -> Iterator[ImageCheck]:
    """Check every image, in order, on all cores: reading and hashing release the interpreter lock."""
    check = partial(_check_image, dataset) if dataset.files is None else partial(_check_file, dataset, thorough)
    every = range(len(dataset))
    parts = [every[start : start + FILES_AT_ONCE] for start in range(0, len(every), FILES_AT_ONCE)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for checked in threads.map(lambda part: [check(i) for i in part], parts):
            yield from checked


def _check_image(dataset: Dataset, i: int) -> ImageCheck:
    """Check an image that has no file of its own."""
    try:
        image = dataset.read(i)
    except DatasetError as error:
        return ImageCheck(str(error), b"")
    return ImageCheck("", _pixels_digest(image))


def _check_file(dataset: Dataset, thorough: bool, i: int) -> ImageCheck:
    """Read an image file once and decode it as training does."""
    assert dataset.files is not None
    key, path = printable(dataset.keys[i]), dataset.files[i]
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            return ImageCheck(f"{key}: not a file", b"")
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ImageCheck(MISSING, b"")
    except OSError as error:
        return ImageCheck(f"{key}: {error.strerror}", b"")
    if not content:
        return ImageCheck(f"{key}: the file is empty", b"")
    try:
        image = decode(io.BytesIO(content), key)
    except DatasetError as error:
        return ImageCheck(str(error), b"")
    return ImageCheck("", _pixels_digest(image) if thorough else _digest(content))


def _pixels_digest(image: Image.Image) -> bytes:
    """Return a digest of the picture in colour, so that grey images with one and three channels are equal."""
    return _digest(repr(image.size).encode() + image.convert("RGB").tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _file_findings(dataset: Dataset, checks: list[ImageCheck]) -> Iterator[Finding]:
    missing = [key for key, check in zip(dataset.keys, checks, strict=True) if check.problem == MISSING]
    if missing:
        yield Finding("E", missing_files(dataset, missing))
    broken = [check.problem for check in checks if check.problem not in ("", MISSING)]
    if broken:
        yield Finding(
            "E", f"{dataset.name}: {len(broken)} of {len(dataset)} images cannot be read ({first_few(broken)})"
        )


def _duplicates(dataset: Dataset, checks: list[ImageCheck], how: str) -> Iterator[Finding]:
    """Yield images that are in two splits, or have two labels in one split; `how` says how they are equal."""
    first: dict[bytes, int] = {}
    in_two_splits, under_two_labels = [], []
    for i, (_, digest) in enumerate(checks):
        j = first.setdefault(digest, i)
        if digest and dataset.split[i] != dataset.split[j]:
            in_two_splits.append(f"{dataset.keys[j]} = {dataset.keys[i]}")
        elif digest and dataset.labels[i] != dataset.labels[j]:
            under_two_labels.append(f"{dataset.keys[j]} = {dataset.keys[i]}")
    for pairs, where in ((in_two_splits, "in two splits"), (under_two_labels, "under two labels of a split")):
        if pairs:
            yield Finding("W", f"{dataset.name}: {len(pairs)} images are {where}, {how} ({first_few(pairs)})")
