"""Caltech-UCSD Birds-200-2011 (Wah et al. 2011): 11,788 photographs of 200 species, the first 100 for training.

`data` is the folder CUB_200_2011, or one that contains it. The classes are split by their number, 1–100 and 101–200
(Oh Song et al. 2016), whatever train_test_split.txt says, which is the split for classification.
Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset, 2011.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, listed
from harness.data.datasets._layout import absent, class_folders, inside, lines, locate, reject_split_folders
from harness.data.datasets._standard import CLASSIFICATION, Standard
from harness.data.datasets._walk import Walk
from harness.errors import first_few

NEEDS_DATA = True
STANDARD = Standard(
    title="CUB-200-2011",
    images=(5_864, 5_924),
    classes=(100, 100),
    numbers=(range(1, 101), range(101, 201)),
    look_alikes={
        (5_994, 5_794): CLASSIFICATION,
        5_994: "These are the training images of the classification split alone",
        5_794: "These are the test images of the classification split alone",
        6_033: "This is the edition of 2010 (CUB-200), which has other images",
    },
    layout="CUB_200_2011/images.txt, CUB_200_2011/image_class_labels.txt, and the photographs in "
    "CUB_200_2011/images/001.Black_footed_Albatross/ … 200.Common_Yellowthroat/",
    source="the university's old page no longer offers it. The archive CUB_200_2011.tgz (1.1 GB) is in "
    "CaltechDATA, the data repository of Caltech's library, under its full name.",
)
CLASS_FOLDER = re.compile(r"(\d{3})\.\w")


def load(data: Path, cache: Path, *, allow_nonstandard: bool = False) -> Dataset:
    """Load a standard copy of the dataset.

    allow_nonstandard: also run a copy of another size; its rows are marked `not CUB-200-2011`.

    Raises DatasetError if the copy is not the standard one or not complete; the message says what is wrong.
    """
    return STANDARD.guard(index(data), allow_nonstandard)


def index(data: Path) -> Dataset:
    """Read images.txt, or the class folders if it is missing, without looking at the photographs.

    Raises DatasetError if neither exists, or if the lists contradict each other.
    """
    lists, walk = locate(data, "images.txt"), Walk(str(data))
    if lists is None:
        folder, keys = _class_folders(walk, data)
    else:
        folder, keys = inside(lists.parent, "images") or lists.parent / "images", _listed_keys(lists, data)
    misplaced = [key for key in keys if not CLASS_FOLDER.match(key)]
    if misplaced:
        raise DatasetError(
            f"cub200: {len(misplaced)} images are in no folder like 001.Black_footed_Albatross "
            f"({first_few(misplaced)})"
        )
    rows = [Row(key, key.partition("/")[0], "train" if int(key[:3]) <= 100 else "test") for key in keys]
    return replace(listed("cub200", folder, rows), passed_over=walk.passed_over)


def _listed_keys(lists: Path, data: Path) -> list[str]:
    """Return the paths in images.txt, after comparing their classes with image_class_labels.txt."""
    labels = locate(lists.parent, "image_class_labels.txt")
    if labels is None:
        raise absent("cub200", data, STANDARD, f"image_class_labels.txt beside {lists}")
    paths, numbers = _pairs(lists), _pairs(labels)
    if alone := sorted(paths.keys() ^ numbers.keys()):
        raise DatasetError(
            f"cub200: {len(alone)} image numbers are in only one of {lists} and {labels.name} ({first_few(alone)}): "
            "one of the two was cut short"
        )
    wrong = [path for image, path in paths.items() if path[:3].lstrip("0") != numbers[image]]
    if wrong:
        raise DatasetError(
            f"cub200: {labels} puts {len(wrong)} images into another class than their folder ({first_few(wrong)})"
        )
    return list(paths.values())


def _pairs(path: Path) -> dict[str, str]:
    """Return the lines `number value` of a file."""
    pairs = lines("cub200", path)
    if bad := [" ".join(words) for words in pairs if len(words) != 2]:
        raise DatasetError(f"cub200: {len(bad)} lines of {path} are not `number value` ({first_few(bad, 2)})")
    return dict(pairs)


def _class_folders(walk: Walk, data: Path) -> tuple[Path, list[str]]:
    """Return images/ and the images in its class folders, for mirrors without the lists."""
    reject_split_folders("cub200", data, STANDARD)
    folder = locate(data, "images") or data
    images = class_folders(walk, folder)
    walk.require_readable("cub200")
    if not any(map(CLASS_FOLDER.match, images)):
        raise absent("cub200", data, STANDARD, "images.txt, nor images/ with a folder for each class,")
    return folder, [f"{name}/{file}" for name, files in images.items() for file in files]
