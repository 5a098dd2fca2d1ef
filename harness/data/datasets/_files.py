"""Datasets of image files: their index, and stamps that show when files change."""

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
from harness.errors import first_few

SEVERAL = 10  # from this number on, missing files have a common cause
TWICE = "additional paths to a file that is indexed already"


class Row(NamedTuple):
    """One image file of a dataset."""

    key: str  # path relative to the dataset's folder, with forward slashes, as the source writes it
    class_name: str
    split: str
    role: str = ""
    file: str = ""  # path relative to the dataset's folder, if it differs from `key`


def from_files(
    name: str, folder: Path, rows: Sequence[Row], passed_over: Sequence[PassedOver] | None = None, **fields
) -> Dataset:
    """Return a dataset of image files below `folder`, each of which must exist once and be readable; see `listed`.

    passed_over: the ignored files; additional paths to one file are added to it. None: such paths are an error.

    Raises DatasetError naming missing, unreadable and repeated files, and those with two labels or in two splits.
    """
    dataset = listed(name, folder, rows, **fields)
    statuses = _statuses(dataset)
    first: dict[tuple[int, int], int] = {}
    again = [i for i, status in enumerate(statuses) if first.setdefault((status.st_dev, status.st_ino), i) != i]
    if again:
        pairs = [(rows[first[statuses[i].st_dev, statuses[i].st_ino]], rows[i]) for i in again]
        _refuse_contradictions(name, pairs)
        if passed_over is None:
            listed_twice = first_few([f"{one.key} = {other.key}" for one, other in pairs])
            raise DatasetError(f"{name}: {len(pairs)} files are listed twice, by different paths ({listed_twice})")
        passed_over = [*passed_over, PassedOver.of(TWICE, [rows[i].key for i in again])]
        gone = set(again)
        kept = [i for i in range(len(rows)) if i not in gone]
        dataset = listed(name, folder, [rows[i] for i in kept], **fields)
        statuses = [statuses[i] for i in kept]
    return replace(dataset, passed_over=tuple(passed_over or ()), **_stamps(statuses))


def _refuse_contradictions(name: str, pairs: Sequence[tuple[Row, Row]]) -> None:
    """Raise DatasetError if two paths to one file differ in label or split."""
    for what, field in (("under two labels", "class_name"), ("in two splits", "split")):
        wrong = [f"{one.key} = {other.key}" for one, other in pairs if getattr(one, field) != getattr(other, field)]
        if wrong:
            raise DatasetError(f"{name}: {len(wrong)} files are {what}, by links to one file ({first_few(wrong)})")


def listed(
    name: str,
    folder: Path,
    rows: Sequence[Row],
    *,
    groups: dict[str, str] | None = None,
    mirrored: bool = True,
    ks: tuple[int, ...] = Dataset.ks,
) -> Dataset:
    """Return a dataset of image files below `folder` without checking them; images in the order of `rows`.

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
    """Return the dataset with stamps of its files: digests of their sizes and times.

    Raises DatasetError naming the files that do not exist or cannot be read.
    """
    return replace(dataset, **_stamps(_statuses(dataset)))


def _stamps(statuses: Sequence[os.stat_result]) -> dict[str, str]:
    """Return digests of sizes and times of files.

    `source_stamp` covers sizes and modification times, equal for copies that preserve them. `local_stamp` adds change
    times, which the system sets whenever a file is written, replaced or renamed.
    """
    digests: dict[str, Any] = {"source_stamp": hashlib.sha256(), "local_stamp": hashlib.sha256()}
    for status in statuses:
        digests["source_stamp"].update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        digests["local_stamp"].update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _statuses(dataset: Dataset) -> list[os.stat_result]:
    """Return the status of each file, with one system call per file; no file is opened."""
    assert dataset.files is not None  # it was made by `listed`
    statuses, missing, unreadable = [], [], []
    for key, file in zip(dataset.keys, dataset.files, strict=True):
        try:
            statuses.append(os.stat(file))
        except (FileNotFoundError, NotADirectoryError):
            missing.append(key)
        except OSError as error:
            unreadable.append(f"{key}: {error.strerror}")
        else:
            if reason := _unreadable_reason(file, statuses[-1]):
                unreadable.append(f"{key}: {reason}")
    if missing:
        raise DatasetError(missing_files(dataset, missing)) from FileNotFoundError(missing[0])
    if unreadable:
        raise DatasetError(f"{dataset.name}: {len(unreadable)} files cannot be read ({first_few(unreadable)})")
    return statuses


def _unreadable_reason(file: str, status: os.stat_result) -> str | None:
    """Return why a file cannot be read; without another system call if everyone may read it."""
    if not stat.S_ISREG(status.st_mode):
        return "a folder" if stat.S_ISDIR(status.st_mode) else "not a file"
    for_all = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
    if status.st_mode & for_all != for_all and not os.access(file, os.R_OK):
        return "Permission denied"
    return None


def _in_other_unicode_form(dataset: Dataset, missing: Sequence[str]) -> bool:
    """Return whether the first missing file exists in another Unicode form, as in archives from a Mac."""
    assert dataset.files is not None
    file = dataset.files[dataset.keys.index(missing[0])]
    forms = {unicodedata.normalize(form, file) for form in ("NFC", "NFD")} if utf8(file) else set()
    return any(os.path.exists(form) for form in forms)


def missing_files(dataset: Dataset, missing: Sequence[str]) -> str:
    """Return the message for missing files, with the first few keys."""
    assert dataset.files is not None
    folder = os.path.commonpath([os.path.dirname(file) for file in dataset.files])
    if _in_other_unicode_form(dataset, missing):
        why = ": files with these names exist in another Unicode form (NFC, NFD); rename them"
    elif len(missing) < SEVERAL:
        why = ""
    else:
        why = ": the lists and the images do not belong together, or only part of an archive was extracted"
    names = first_few(list(missing))
    return f"{dataset.name}: {len(missing)} of {len(dataset)} files are missing in {folder}{why} ({names})"
