"""The datasets: one file each, found by its name. A dataset is an index of images with labels and a class split.

A file `<name>.py` in this folder is the dataset `<name>`. It holds

    NEEDS_DATA: bool                                                  # must the user name a folder or file?
    def load(data: Path | None, cache: Path, **options) -> Dataset    # keyword options with defaults

and the first line of its docstring is its description. No other file has to be edited.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from harness.cache import default_folder

SPLITS = ("train", "validation", "test")
ROLES = ("query", "gallery")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


class DatasetError(ValueError):
    """A dataset is missing, damaged or unfair; the message says which one and why, in the user's words."""


@dataclass(frozen=True)
class Dataset:
    """An index of n images of C classes; pixels are read one by one and never kept here."""

    name: str
    keys: tuple[str, ...]  # one readable, unique id per image, e.g. its relative path
    labels: np.ndarray  # int64 (n,), indices into class_names
    class_names: tuple[str, ...]
    split: np.ndarray  # (n,) of "train", "validation", "test"; "validation" only where the source names one
    read: Callable[[int], Image.Image]  # image i, RGB or L; raises DatasetError naming the key
    role: np.ndarray | None = None  # (n,) of "query", "gallery", ""; None: every test image is both
    groups: tuple[str, ...] | None = None  # (C,), e.g. the alphabet of each character
    ks: tuple[int, ...] = (1, 2, 4, 8)  # the K of R@K that are customary for it
    mirrored: bool = True  # does a horizontal flip keep the class?
    pixel_fingerprint: str | None = None  # sha256 over the decoded pixels, where that is cheap
    source_stamp: str = ""  # changes when the source's bytes do: digests, or sizes and times of the files

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def index_fingerprint(self) -> str:
        """sha256 over the sorted rows (key, class name, split, role): equal for equal benchmarks."""
        roles = [""] * len(self) if self.role is None else self.role.tolist()
        rows = zip(self.keys, self.labels.tolist(), self.split.tolist(), roles, strict=True)
        lines = sorted("\0".join((key, self.class_names[c], split, role)) for key, c, split, role in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Description:
    """What can be said of a dataset without loading it."""

    name: str
    title: str
    needs_data: bool
    options: dict[str, Any]  # option: default


def names() -> tuple[str, ...]:
    """The datasets that exist: the files of this folder, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def describe(name: str) -> Description:
    """The title, options and needs of one dataset. Raises DatasetError for an unknown name."""
    module = _module(name)
    title = (inspect.getdoc(module) or "").partition("\n")[0]
    return Description(name, title, module.NEEDS_DATA, _options(module))


def load(name: str, data: Path | str | None = None, cache: Path | str | None = None, **options) -> Dataset:
    """Load the index of a dataset and check it (see `check`).

    name: one of `names()`.
    data: where the user's copy lies; not looked at by datasets that need none (`describe(name).needs_data`).
    cache: folder for what is computed once, by default `~/.cache/metrix-bench`.
    options: the dataset's own, see `describe(name).options`.

    Raises DatasetError for an unknown name or option, for data that are missing, and for what `check` refuses.
    """
    module = _module(name)
    known = _options(module)
    for option in options:
        if option not in known:
            raise DatasetError(f"dataset {name!r} has no option {option!r}{suggestion(option, known)}")
    if module.NEEDS_DATA and data is None:
        raise DatasetError(f"dataset {name!r} reads your own copy: say where it lies (data=…)")
    if module.NEEDS_DATA and not Path(data).exists():
        raise DatasetError(f"dataset {name!r}: there is no {data}")
    dataset = module.load(
        Path(data) if data is not None else None, Path(cache) if cache else default_folder(), **options
    )
    check(dataset)
    return dataset


def check(dataset: Dataset) -> None:
    """Raise DatasetError unless every split can be trained on or judged.

    Refused: no images; an image listed twice; no training or no test classes; a class in two splits; a split
    whose classes hold one image each; query and gallery roles under which no query has a positive.
    """
    if not len(dataset):
        raise DatasetError(f"{dataset.name}: no images")
    if len(set(dataset.keys)) < len(dataset):
        seen: set[str] = set()
        twice = [key for key in dataset.keys if key in seen or seen.add(key)]
        raise DatasetError(f"{dataset.name}: {len(twice)} images are listed twice ({some(twice)})")
    classes = {split: np.unique(dataset.labels[dataset.split == split]) for split in SPLITS}
    for split in ("train", "test"):
        if len(classes[split]) < 2:
            raise DatasetError(f"{dataset.name}: {len(classes[split])} classes in {split}, at least 2 are needed")
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = np.intersect1d(classes[first], classes[second])
        if len(both):
            named = some([dataset.class_names[c] for c in both])
            raise DatasetError(f"{dataset.name}: {len(both)} classes in both {first} and {second} ({named})")
    for split in SPLITS:
        counts = np.bincount(dataset.labels[dataset.split == split])
        if counts.size and counts.max() < 2:
            raise DatasetError(f"{dataset.name}: every class in {split} has one image, so nothing can be retrieved")
    if dataset.role is not None:
        _check_roles(dataset)


def _check_roles(dataset: Dataset) -> None:
    test = dataset.split == "test"
    if not np.isin(dataset.role[test], ROLES).all():
        blank = [dataset.keys[i] for i in np.flatnonzero(test & ~np.isin(dataset.role, ROLES))]
        raise DatasetError(f"{dataset.name}: {len(blank)} test images are neither query nor gallery ({some(blank)})")
    queried, held = (np.unique(dataset.labels[test & (dataset.role == role)]) for role in ROLES)
    if not len(np.intersect1d(queried, held)):
        raise DatasetError(f"{dataset.name}: no class has both a query and a gallery image in test")


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
    name: str, folder: Path, rows: Sequence[Row], *, groups: dict[str, str] | None = None, mirrored: bool = True
) -> Dataset:
    """A dataset of image files below `folder`; class names are sorted, images stay in the order of `rows`.

    groups: the group of each class name, or None.
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


def some(words: list[str], most: int = 5) -> str:
    """The first few of many words, for a message: 'a, b, c and 4 more'."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _module(name: str) -> ModuleType:
    if name not in names():
        raise DatasetError(f"no dataset named {name!r}{suggestion(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def _options(module: ModuleType) -> dict[str, Any]:
    parameters = list(inspect.signature(module.load).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def suggestion(word: str, known: Iterable[str]) -> str:
    """What follows a misspelled word: "; did you mean 'glyphs'? (folder, glyphs, manifest)"."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    return f"{question} ({', '.join(known)})" if known else " (it has none)"
