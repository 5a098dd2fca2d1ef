"""Datasets whose images are files: an index of them, and what tells when they change."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from harness.data.datasets._dataset import Dataset, DatasetError, PassedOver
from harness.data.datasets._decode import decode
from harness.data.datasets._labels import utf8
from harness.errors import some

SEVERAL = 10  # missing files are no accident any more
TWICE = "further paths to a file that is indexed already"


class Row(NamedTuple):
    """One image file of a dataset."""

    key: str  # path relative to the dataset's folder, with forward slashes, as the source writes it
    class_name: str
    split: str
    role: str = ""
    file: str = ""  # where it lies, relative to the dataset's folder, if not where `key` says


def from_files(
    name: str, folder: Path, rows: Sequence[Row], passed_over: Sequence[PassedOver] | None = None, **fields
) -> Dataset:
    """A dataset of image files below `folder`, each of which exists, can be read and is there once; see `listed`.

    passed_over: what lies there besides; further paths to one file join it. None: they are refused.

    Raises DatasetError naming the files for which that is not so, and those under two labels or in two splits.
    """
    dataset = listed(name, folder, rows, **fields)
    statuses = _statuses(dataset)
    first: dict[tuple[int, int], int] = {}
    again = [i for i, status in enumerate(statuses) if first.setdefault((status.st_dev, status.st_ino), i) != i]
    if again:
        pairs = [(rows[first[statuses[i].st_dev, statuses[i].st_ino]], rows[i]) for i in again]
        _refuse_contradictions(name, pairs)
        if passed_over is None:
            listed_twice = some([f"{one.key} = {other.key}" for one, other in pairs])
            raise DatasetError(f"{name}: {len(pairs)} files are listed twice, by different paths ({listed_twice})")
        passed_over = [*passed_over, PassedOver.of(TWICE, [rows[i].key for i in again])]
        gone = set(again)
        kept = [i for i in range(len(rows)) if i not in gone]
        dataset = listed(name, folder, [rows[i] for i in kept], **fields)
        statuses = [statuses[i] for i in kept]
    return replace(dataset, passed_over=tuple(passed_over or ()), **_stamps(statuses))


def _refuse_contradictions(name: str, pairs: Sequence[tuple[Row, Row]]) -> None:
    """Raise DatasetError where two paths to one file disagree about what it shows, or in which split it is."""
    for what, field in (("under two labels", "class_name"), ("in two splits", "split")):
        wrong = [f"{one.key} = {other.key}" for one, other in pairs if getattr(one, field) != getattr(other, field)]
        if wrong:
            raise DatasetError(f"{name}: {len(wrong)} files are {what}, by links to one file ({some(wrong)})")


def listed(
    name: str,
    folder: Path,
    rows: Sequence[Row],
    *,
    groups: dict[str, str] | None = None,
    mirrored: bool = True,
    ks: tuple[int, ...] = Dataset.ks,
) -> Dataset:
    """A dataset of image files below `folder`, not yet looked at; class names are sorted, images as in `rows`.

    groups: the group of each class name, or None.  mirrored, ks: as in `Dataset`.
    """
    class_names = sorted({row.class_name for row in rows})
    number = {class_name: c for c, class_name in enumerate(class_names)}
    keys = tuple(row.key for row in rows)
    files = tuple(os.path.join(folder, row.file or row.key) for row in rows)
    return Dataset(
        name=name,
        keys=keys,
        labels=np.array([number[row.class_name] for row in rows], dtype=np.int64),
        class_names=tuple(class_names),
        split=np.array([row.split for row in rows], dtype="<U10"),
        read=partial(_read_file, files, keys),
        role=np.array([row.role for row in rows], dtype="<U7") if any(row.role for row in rows) else None,
        groups=None if groups is None else tuple(groups[class_name] for class_name in class_names),
        ks=ks,
        mirrored=mirrored,
        files=files,
    )


def _read_file(files: tuple[str, ...], keys: tuple[str, ...], index: int) -> Image.Image:
    return decode(files[index], keys[index])


def stamped(dataset: Dataset) -> Dataset:
    """The dataset with stamps of its files: digests of their sizes and times.

    Raises DatasetError naming the files that do not exist or cannot be read.
    """
    return replace(dataset, **_stamps(_statuses(dataset)))


def _stamps(statuses: Sequence[os.stat_result]) -> dict[str, str]:
    """`source_stamp`: sizes and modification times, equal for copies that keep them. `local_stamp`: with the times of
    change, which the system sets itself whenever a file is written, replaced or renamed."""
    digests: dict[str, Any] = {"source_stamp": hashlib.sha256(), "local_stamp": hashlib.sha256()}
    for status in statuses:
        digests["source_stamp"].update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        digests["local_stamp"].update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _statuses(dataset: Dataset) -> list[os.stat_result]:
    """What the system says of each file, which costs one question a file; none is opened."""
    found, missing, unreadable = [], [], []
    for key, file in zip(dataset.keys, dataset.files, strict=True):
        try:
            found.append(os.stat(file))
        except (FileNotFoundError, NotADirectoryError):
            missing.append(key)
        except OSError as error:
            unreadable.append(f"{key}: {error.strerror}")
        else:
            if reason := _unfit(file, found[-1]):
                unreadable.append(f"{key}: {reason}")
    if missing:
        raise DatasetError(missing_files(dataset, missing)) from FileNotFoundError(missing[0])
    if unreadable:
        raise DatasetError(f"{dataset.name}: {len(unreadable)} files cannot be read ({some(unreadable)})")
    return found


def _unfit(file: str, status: os.stat_result) -> str | None:
    """Why a path leads to nothing that can be read; a file that all may read is not asked about again."""
    if not stat.S_ISREG(status.st_mode):
        return "a folder" if stat.S_ISDIR(status.st_mode) else "not a file"
    for_all = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
    if status.st_mode & for_all != for_all and not os.access(file, os.R_OK):
        return "Permission denied"
    return None


def _written_otherwise(dataset: Dataset, missing: Sequence[str]) -> bool:
    """Whether the first missing file is there under the same name to the eye, as archives made on a Mac have it."""
    file = dataset.files[dataset.keys.index(missing[0])]
    forms = {unicodedata.normalize(form, file) for form in ("NFC", "NFD")} if utf8(file) else set()
    return any(os.path.exists(form) for form in forms)


def missing_files(dataset: Dataset, missing: Sequence[str]) -> str:
    """The sentence for files that do not exist, with the first few of their keys."""
    folder = os.path.commonpath([os.path.dirname(file) for file in dataset.files])
    if _written_otherwise(dataset, missing):
        why = ": files of these names are there in another Unicode form of the letters (NFC, NFD); rename them"
    elif len(missing) < SEVERAL:
        why = ""
    else:
        why = ": the lists and the images do not belong together, or only a part was extracted"
    return (
        f"{dataset.name}: {len(missing)} of {len(dataset)} files are missing in {folder}{why} ({some(list(missing))})"
    )
