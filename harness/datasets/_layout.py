"""Finding the parts of a dataset in a folder as users have it: nested, renamed in case, packed, or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from harness.datasets import DatasetError, some
from harness.datasets._files import IMAGE_SUFFIXES
from harness.datasets._standard import Standard

DEPTH = 3  # levels of folders that are looked through: data, its folders and theirs
ARCHIVES = (".tgz", ".tar", ".tar.gz", ".zip")


def locate(data: Path, *names: str) -> Path | None:
    """The file or folder below `data` that has one of the names, whatever its case; None where there is none.

    The one nearest to `data` is taken, then the first in alphabetical order.
    """
    wanted = {name.lower() for name in names}
    return next((Path(entry) for entry in _entries(data) if entry.name.lower() in wanted), None)


def inside(folder: Path, *names: str) -> Path | None:
    """The folder that these names lead to from `folder`, whatever their case; None where one is missing."""
    for name in names:
        found = [entry for entry in _listed(folder) if entry.name.lower() == name.lower() and entry.is_dir()]
        if not found:
            return None
        folder = Path(found[0])
    return folder


def absent(name: str, data: Path, standard: Standard, what: str) -> DatasetError:
    """The error of a copy that lacks `what`: what lies there instead, what goes where, where it is to be had."""
    packed = [entry.name for entry in _entries(data) if entry.name.lower().endswith(ARCHIVES)]
    if packed:
        unpack = f"; {some(packed)} there {'is' if len(packed) == 1 else 'are'} still packed: extract first"
    else:
        unpack = ""
    return DatasetError(f"{name}: there is no {what} in {data}{unpack}\n{standard.advice}")


def lines(path: Path) -> list[list[str]]:
    """The words of each line of a text file that holds any."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [words for line in text.splitlines() if (words := line.split())]


def class_folders(folder: Path) -> dict[str, list[str]]:
    """The image files of each class folder in `folder`, both in alphabetical order; folders without any left out."""
    found = {}
    for entry in _listed(folder):
        if entry.is_dir():
            files = [file.name for file in _listed(Path(entry)) if is_image(file.name)]
            if files:
                found[entry.name] = files
    return found


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image; `._a.jpg`, which macOS leaves behind, is none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def refuse_split_folders(name: str, data: Path, standard: Standard) -> None:
    """Raise DatasetError when `data` holds train/ and test/ with class folders: a split, but not the standard one."""
    train = locate(data, "train")
    test = train and (inside(train.parent, "test") or inside(train.parent, "val") or inside(train.parent, "valid"))
    if not test:
        return
    images, classes = [], []
    for folder in (train, test):
        found = class_folders(folder)
        images.append(sum(map(len, found.values())))
        classes.append(set(found))
    if not all(images):
        return
    sizes, expected = "/".join(map(str, images)), "/".join(map(str, standard.images))
    both = classes[0] & classes[1]
    known = standard.look_alikes.get(tuple(images))
    if known is None and both:
        known = f"{len(both)} classes are in both {train.name}/ and {test.name}/: no split for metric learning"
    raise DatasetError(
        f"FAIR-01 {name}: {sizes} images, expected {expected}. {f'{known}. ' if known else ''}{train.parent} holds "
        f"{train.name}/ and {test.name}/ instead of the published files.\n{standard.advice}"
    )


def _entries(data: Path) -> Iterator[os.DirEntry]:
    """What lies below a folder, level by level, each level in alphabetical order."""
    level = [data] if data.is_dir() else []
    for _ in range(DEPTH):
        entries = [entry for folder in level for entry in _listed(folder)]
        yield from entries
        level = [Path(entry) for entry in entries if entry.is_dir()]


def _listed(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, without what is hidden or made by macOS."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    return sorted(shown, key=lambda entry: entry.name)
