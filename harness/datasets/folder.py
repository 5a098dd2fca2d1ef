"""Your own images: one folder per class, or train/ and test/ (and validation/) with one folder per class in each.

Images may lie deeper inside a class folder; files that are no images, and hidden ones, are left out.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets import SPLITS, Dataset, DatasetError, some
from harness.datasets._files import Row, from_files, image_files
from harness.splits import held_out

NEEDS_DATA = True


def load(data: Path | None, cache: Path, *, test_share: float = 0.5, mirrored: bool = True) -> Dataset:
    """Index the images below `data`.

    test_share: without train/ and test/, this share of the classes is the test split: the first in the order of
        sha256("test-1" + class name).
    mirrored: whether a mirrored image still shows its class (it does not for characters).

    Raises DatasetError when there are no class folders with images, or only one of train/ and test/.
    """
    if not data.is_dir():
        raise DatasetError(f"folder: {data} is a file; name the folder that holds one folder per class")
    folders = _folders(data)
    named = [folder for folder in folders if folder.name in SPLITS]
    if not named:
        return from_files("folder", data, _rows_by_share(data, folders, test_share), mirrored=mirrored)
    if not {"train", "test"} <= {folder.name for folder in named}:
        raise DatasetError(f"folder: {data} holds {named[0].name}/; train/ and test/ are both needed, or neither")
    if len(named) < len(folders):
        others = [folder.name for folder in folders if folder not in named]
        raise DatasetError(f"folder: {data} holds train/ and test/, and beside them {some(others)}: split or class?")
    rows = [
        Row(file.relative_to(data).as_posix(), class_folder.name, split.name)
        for split in named
        for class_folder in _folders(split)
        for file in image_files(class_folder)
    ]
    return from_files("folder", data, rows, mirrored=mirrored)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _rows_by_share(data: Path, folders: list[Path], test_share: float) -> list[Row]:
    files = {folder.name: found for folder in folders if (found := image_files(folder))}
    if not files:
        raise DatasetError(f"folder: no class folders with images in {data}; expected {data}/<class>/<image>.jpg")
    class_names = list(files)
    in_test = {class_names[c] for c in held_out(class_names, test_share, "test-1")}
    return [
        Row(file.relative_to(data).as_posix(), name, "test" if name in in_test else "train")
        for name, found in files.items()
        for file in found
    ]
