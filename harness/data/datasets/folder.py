"""Your own images: one folder per class, or train/ and test/ (and validation/) with one folder per class in each.

Images may be nested inside a class folder, and behind links. Everything else is ignored and counted: files that are
not images, hidden files, and files of operating systems and storage devices.
"""

from __future__ import annotations

from pathlib import Path

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, from_files
from harness.data.datasets._walk import EMPTY, LINKED, Walk
from harness.data.splits import held_out
from harness.errors import first_few

NEEDS_DATA = True

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LOOSE = "files outside class folders"
WITHOUT_IMAGES = "class folders without images"


def load(data: Path, cache: Path, *, test_share: float = 0.5, mirrored: bool = True) -> Dataset:
    """Index the images below `data`.

    test_share: without train/ and test/, this share of the classes is the test split: the first in the order of
        sha256("test-1" + class name).
    mirrored: whether a mirrored image still shows its class (not true for characters).

    Split folders may have any case, and may be called training/, testing/, val/ or valid/.

    Raises DatasetError if there are no class folders with images, if only one of train/ and test/ exists, if a file
    has two labels, and if something cannot be read.
    """
    if not data.is_dir():
        raise DatasetError(f"folder: {data} is a file; name the folder that contains one folder per class")
    walk = Walk(str(data))
    top = _folders(walk)
    splits = _split_folders(data, top)
    rows = _rows_of_splits(walk, splits) if splits else _rows_by_share(walk, top, test_share)
    walk.require_readable("folder")
    if not rows:
        raise DatasetError(f"folder: no class folders with images in {data}; expected {data}/<class>/<image>.jpg")
    return from_files("folder", data, rows, walk.passed_over, mirrored=mirrored)


def _folders(walk: Walk, above: str = "") -> list[str]:
    """Return the folders in a folder, including links to folders, sorted by name; files next to them are ignored."""
    folders, links, files = walk.entries(above)
    walk.ignored[LOOSE] += files
    return sorted(folders + links)


def _split_folders(data: Path, top: list[str]) -> dict[str, str]:
    """Return the folder of each split; {} if the top folders are classes.

    Raises DatasetError if there are folders of both kinds, or if a split has no folder or two.
    """
    named: dict[str, list[str]] = {}
    for folder in top:
        if split := SPLIT_FOLDERS.get(folder.lower()):
            named.setdefault(split, []).append(folder)
    if not named:
        return {}
    for split, folders in named.items():
        if len(folders) > 1:
            raise DatasetError(f"folder: {data} contains {first_few(folders)}, all of them for {split}: keep one")
    if not {"train", "test"} <= set(named):
        listed_folders = first_few([f"{folder}/" for folders in named.values() for folder in folders])
        raise DatasetError(
            f"folder: {data} contains {listed_folders}; provide both train/ and test/, or neither; rename a class of "
            "this name"
        )
    others = [folder for folder in top if folder.lower() not in SPLIT_FOLDERS]
    if others:
        raise DatasetError(f"folder: {data} contains train/ and test/, but also {first_few(others)}: move these away")
    return {split: named[split][0] for split in sorted(named)}


def _rows_of_splits(walk: Walk, splits: dict[str, str]) -> list[Row]:
    return [
        Row(path, name, split)
        for split, folder in splits.items()
        for name, paths in _classes(walk, _folders(walk, folder), ("", folder)).items()
        for path in paths
    ]


def _rows_by_share(walk: Walk, folders: list[str], test_share: float) -> list[Row]:
    classes = _classes(walk, folders, ("",))
    if not classes:
        return []
    names = list(classes)
    in_test = {names[c] for c in held_out(names, test_share, "test-1")}
    return [
        Row(path, name, "test" if name in in_test else "train") for name, paths in classes.items() for path in paths
    ]


def _classes(walk: Walk, folders: list[str], above: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the image files of each class folder that has any."""
    by_class = {}
    for folder in folders:
        if paths := walk.images(folder, above):
            by_class[folder.rpartition("/")[2]] = paths
        elif folder not in walk.ignored[EMPTY] and folder not in walk.ignored[LINKED]:
            walk.ignored[WITHOUT_IMAGES].append(folder)
    return by_class
