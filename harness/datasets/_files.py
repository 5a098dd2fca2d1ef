"""Datasets whose images are files: which they are, and how any of them becomes 8-bit grey or RGB."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from harness.datasets import Dataset, DatasetError, some

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
SEVERAL = 10  # missing files are no accident any more


def decode(source: str | Path | BinaryIO, key: str) -> Image.Image:
    """Decode one image file to 8-bit RGB, or L where it is grey.

    Turned upright by its EXIF orientation; transparency is laid on white; 16-bit values are divided by 257;
    the first frame of an animation is taken. Raises DatasetError naming `key` when it cannot be read.
    """
    try:
        with Image.open(source) as image:
            image.load()
            return _eight_bit(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error on bad bytes
        raise DatasetError(f"{key}: {type(error).__name__}: {error}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values {values.min()} to {values.max()} are not 16-bit")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        ink = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")
    return image.convert("RGB")


class Row(NamedTuple):
    """One image file of a dataset."""

    key: str  # path relative to the dataset's folder, with forward slashes, as the source writes it
    class_name: str
    split: str
    role: str = ""
    file: str = ""  # where it lies, relative to the dataset's folder, if not where `key` says


def from_files(name: str, folder: Path, rows: Sequence[Row], **fields) -> Dataset:
    """A dataset of image files below `folder`, all of which exist; see `listed`.

    Raises DatasetError naming the files that do not exist.
    """
    return stamped(listed(name, folder, rows, **fields))


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
    """The dataset with a stamp of its files: a digest of their sizes and of the times of their last changes.

    It is cheap, and another one when a file is replaced, also by one of the same size whose modification time was
    set, as unpacking an archive does: the time of the last change cannot be set. Raises DatasetError naming the
    files that do not exist.
    """
    digest, missing = hashlib.sha256(), []
    for key, file in zip(dataset.keys, dataset.files, strict=True):
        try:
            status = os.stat(file)
            digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
        except (FileNotFoundError, NotADirectoryError):
            missing.append(key)
    if missing:
        raise DatasetError(missing_files(dataset, missing))
    return replace(dataset, source_stamp=digest.hexdigest())


def missing_files(dataset: Dataset, missing: Sequence[str]) -> str:
    """The sentence for files that do not exist, with the first few of their keys."""
    folder = os.path.commonpath([os.path.dirname(file) for file in dataset.files])
    why = (
        ""
        if len(missing) < SEVERAL
        else ": the lists and the images do not belong together, or only a part was extracted"
    )
    return (
        f"{dataset.name}: {len(missing)} of {len(dataset)} files are missing in {folder}{why} ({some(list(missing))})"
    )


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files (`._a.jpg`, `.cache/`) are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)
