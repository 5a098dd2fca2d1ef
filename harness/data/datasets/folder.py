"""Your own images: one folder per class, or train/ and test/ (and validation/) with one folder per class in each.

Images may be deeper inside a class folder, and behind links. Everything else is passed over and counted: files that
are not images, hidden files, and what operating systems and storage boxes leave behind.
"""

from __future__ import annotations

from pathlib import Path

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, from_files
from harness.data.datasets._walk import EMPTY, LINKED, Walk
from harness.data.splits import held_out
from harness.errors import some

NEEDS_DATA = True

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LOOSE = "files in no class folder"
WITHOUT_IMAGES = "class folders without images"


def load(data: Path | None, cache: Path, *, test_share: float = 0.5, mirrored: bool = True) -> Dataset:
    """Index the images below `data`.

    test_share: without train/ and test/, this share of the classes is the test split: the first in the order of
        sha256("test-1" + class name).
    mirrored: whether a mirrored image still shows its class (it does not for characters).

    The folders of the splits are found in any case, also as training/, testing/, val/ and valid/.

    Raises DatasetError when there are no class folders with images, when only one of train/ and test/ is there, when
    one file is indexed under two labels, and when something cannot be read.
    """
    if not data.is_dir():
        raise DatasetError(f"folder: {data} is a file; name the folder that holds one folder per class")
    walk = Walk(str(data))
    top = _folders(walk)
    splits = _split_folders(data, top)
    rows = _rows_of_splits(walk, splits) if splits else _rows_by_share(walk, top, test_share)
    walk.refuse_unreadable("folder")
    if not rows:
        raise DatasetError(f"folder: no class folders with images in {data}; expected {data}/<class>/<image>.jpg")
    return from_files("folder", data, rows, walk.passed_over, mirrored=mirrored)


def _folders(walk: Walk, above: str = "") -> list[str]:
    """The folders in a folder, links to folders among them, sorted by name; files beside them are passed over."""
    folders, links, files = walk.entries(above)
    walk.passed[LOOSE] += files
    return sorted(folders + links)


def _split_folders(data: Path, top: list[str]) -> dict[str, str]:
    """The folder of each split; {} where the top folders are classes.

    Raises DatasetError where they are of both kinds, and where a split has no folder or two.
    """
    named: dict[str, list[str]] = {}
    for folder in top:
        if split := SPLIT_FOLDERS.get(folder.lower()):
            named.setdefault(split, []).append(folder)
    if not named:
        return {}
    for split, folders in named.items():
        if len(folders) > 1:
            raise DatasetError(f"folder: {data} holds {some(folders)}, all of them for {split}: keep one")
    if not {"train", "test"} <= set(named):
        found = some([f"{folder}/" for folders in named.values() for folder in folders])
        raise DatasetError(
            f"folder: {data} holds {found}; train/ and test/ are both needed, or neither; a class of this name needs "
            "another"
        )
    others = [folder for folder in top if folder.lower() not in SPLIT_FOLDERS]
    if others:
        raise DatasetError(f"folder: {data} holds train/ and test/, and beside them {some(others)}: split or class?")
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
    """The image files of each class folder that holds any."""
    found = {}
    for folder in folders:
        if paths := walk.images(folder, above):
            found[folder.rpartition("/")[2]] = paths
        elif folder not in walk.passed[EMPTY] and folder not in walk.passed[LINKED]:
            walk.passed[WITHOUT_IMAGES].append(folder)
    return found
