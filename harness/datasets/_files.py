"""Datasets whose images are files: which they are, and how any of them becomes 8-bit grey or RGB."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from harness.datasets import Dataset, DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def decode(source: Path | BinaryIO, key: str) -> Image.Image:
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

    key: str  # path relative to the dataset's folder, with forward slashes
    class_name: str
    split: str
    role: str = ""


def from_files(
    name: str,
    folder: Path,
    rows: Sequence[Row],
    *,
    groups: dict[str, str] | None = None,
    mirrored: bool = True,
    ks: tuple[int, ...] = Dataset.ks,
) -> Dataset:
    """A dataset of image files below `folder`; class names are sorted, images stay in the order of `rows`.

    groups: the group of each class name, or None.  mirrored, ks: as in `Dataset`.
    Raises DatasetError naming every file that does not exist.
    """
    class_names = sorted({row.class_name for row in rows})
    number = {class_name: c for c, class_name in enumerate(class_names)}
    keys = tuple(row.key for row in rows)
    return Dataset(
        name=name,
        keys=keys,
        labels=np.array([number[row.class_name] for row in rows], dtype=np.int64),
        class_names=tuple(class_names),
        split=np.array([row.split for row in rows], dtype="<U10"),
        read=partial(_read_file, folder, keys),
        role=np.array([row.role for row in rows], dtype="<U7") if any(row.role for row in rows) else None,
        groups=None if groups is None else tuple(groups[class_name] for class_name in class_names),
        ks=ks,
        mirrored=mirrored,
        source_stamp=_stamp(name, folder, keys),
    )


def _read_file(folder: Path, keys: tuple[str, ...], index: int) -> Image.Image:
    return decode(folder / keys[index], keys[index])


def _stamp(name: str, folder: Path, keys: tuple[str, ...]) -> str:
    """A digest of the sizes and modification times of files: cheap, and another one when a file is replaced."""
    digest, missing = hashlib.sha256(), []
    for key in keys:
        try:
            status = os.stat(folder / key)
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except (FileNotFoundError, NotADirectoryError):
            missing.append(key)
    if missing:
        raise DatasetError("\n  ".join([f"{name}: {len(missing)} files are missing in {folder}:", *missing]))
    return digest.hexdigest()


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
