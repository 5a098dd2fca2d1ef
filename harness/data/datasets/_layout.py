"""Find the parts of a dataset in a user's folder, where they may be nested, packed, missing or in other case."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from harness.data.datasets._dataset import DatasetError
from harness.data.datasets._standard import Standard
from harness.data.datasets._walk import IMAGE, Walk, clutter
from harness.errors import first_few

DEPTH = 3  # levels of folders that are searched: data, its folders and theirs
ARCHIVES = (".tgz", ".tar", ".tar.gz", ".zip")


def locate(data: Path, *names: str) -> Path | None:
    """Return the file or folder below `data` with one of the names in any case; None if there is none.

    The one closest to `data` is preferred, then the first in alphabetical order.
    """
    wanted = {name.lower() for name in names}
    return next((Path(entry) for entry in _entries(data) if entry.name.lower() in wanted), None)


def inside(folder: Path, *names: str) -> Path | None:
    """Return the folder at this path from `folder`, in any case; None if it does not exist."""
    for name in names:
        matches = [entry for entry in _listed(folder) if entry.name.lower() == name.lower() and entry.is_dir()]
        if not matches:
            return None
        folder = Path(matches[0])
    return folder


def absent(name: str, data: Path, standard: Standard, what: str) -> DatasetError:
    """Return the error of a copy without `what`: packed archives in its place, and where everything belongs."""
    packed = [entry.name for entry in _entries(data) if entry.name.lower().endswith(ARCHIVES)]
    are = "is" if len(packed) == 1 else "are"
    unpack = f"; {first_few(packed)} {are} still packed: extract first" if packed else ""
    return DatasetError(f"{name}: there is no {what} in {data}{unpack}\n{standard.advice}")


def text(name: str, path: Path) -> str:
    """Return a text file in UTF-8, or in UTF-16 with a byte order mark, with its own line ends.

    Raises DatasetError of dataset `name` if it cannot be read, with the line that is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{name}: {path}: {error.strerror}") from error
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        words = ascii(content.splitlines()[line - 1][:60])[1:] if encoding == "utf-8-sig" else error.reason
        raise DatasetError(
            f"{name}: {path} is not in UTF-8: line {line} contains {words}; save it as UTF-8"
        ) from error


def lines(name: str, path: Path) -> list[list[str]]:
    """Return the words of each non-blank line of a text file. Raise DatasetError as `text` does."""
    return [words for line in text(name, path).splitlines() if (words := line.split())]


def class_folders(walk: Walk, folder: Path) -> dict[str, list[str]]:
    """Return the image files in and below each class folder in `folder`, as paths from there, in alphabetical order.

    Folders without images are left out. `walk` records ignored files; `folder` is inside its root.
    """
    above = folder.relative_to(walk.root).as_posix().removeprefix(".")
    folders, links, _ = walk.entries(above)
    by_class = {}
    for path in sorted(folders + links):
        if images := walk.images(path, ("", above)):
            by_class[path.rpartition("/")[2]] = [os.path.relpath(image, path) for image in images]
    return by_class


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image; `._a.jpg`, which macOS leaves behind, is not."""
    return not clutter(name) and IMAGE.fullmatch(os.path.splitext(name)[1]) is not None


def reject_split_folders(name: str, data: Path, standard: Standard) -> None:
    """Raise DatasetError if `data` contains train/ and test/ with class folders, which is not the standard split."""
    train = locate(data, "train")
    test = train and (inside(train.parent, "test") or inside(train.parent, "val") or inside(train.parent, "valid"))
    if not train or not test:
        return
    images, classes = [], []
    for folder in (train, test):
        by_class = class_folders(Walk(str(data)), folder)
        images.append(sum(map(len, by_class.values())))
        classes.append(set(by_class))
    if not all(images):
        return
    sizes, expected = "/".join(map(str, images)), "/".join(map(str, standard.images))
    both = classes[0] & classes[1]
    known = standard.look_alikes.get((images[0], images[1]))
    if known is None and both:
        known = f"{len(both)} classes are in both {train.name}/ and {test.name}/: not a split for metric learning"
    raise DatasetError(
        f"FAIR-01 {name}: {sizes} images, expected {expected}. {f'{known}. ' if known else ''}{train.parent} "
        f"contains {train.name}/ and {test.name}/ instead of the published files.\n{standard.advice}"
    )


def _entries(data: Path) -> Iterator[os.DirEntry]:
    """Yield the entries below a folder, level by level, each level in alphabetical order."""
    level = [data] if data.is_dir() else []
    for _ in range(DEPTH):
        entries = [entry for folder in level for entry in _listed(folder)]
        yield from entries
        level = [Path(entry) for entry in entries if entry.is_dir()]


def _listed(folder: Path) -> list[os.DirEntry]:
    """Return the entries of a folder without hidden and system files. Raise DatasetError if it cannot be opened."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not clutter(entry.name)]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be opened: {error.strerror}") from error
    return sorted(shown, key=lambda entry: entry.name)
