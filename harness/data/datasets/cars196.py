"""Stanford Cars (Krause et al. 2013): 16,185 photographs of 196 models, the first 98 for training.

`data` is the folder of the copy, or one that contains it. Two layouts exist with different file names: car_ims/ with
cars_annos.mat, and cars_train/ and cars_test/ with the devkit's annotations. The classes are split by their number,
1–98 and 99–196 (Oh Song et al. 2016), whatever the annotations call training and test, which is the split for
classification. Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization, 3dRR 2013.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, listed
from harness.data.datasets._layout import absent, inside, is_image, locate, reject_split_folders
from harness.data.datasets._standard import CLASSIFICATION, Standard

NEEDS_DATA = True
STANDARD = Standard(
    title="Cars196",
    images=(8_054, 8_131),
    classes=(98, 98),
    numbers=(range(1, 99), range(99, 197)),
    look_alikes={
        (8_144, 8_041): CLASSIFICATION,
        8_144: "These are the training images of the classification split alone",
        8_041: "These are the test images of the classification split alone",
    },
    layout="either cars_annos.mat and the photographs in car_ims/, or cars_train/, cars_test/ and a folder devkit/ "
    "with cars_meta.mat, cars_train_annos.mat and cars_test_annos_withlabels.mat",
    source="the author's page at Stanford is gone since 2023. Copies are on Kaggle, Hugging Face and the Internet "
    "Archive under the name Stanford Cars. Many lack cars_test_annos_withlabels.mat: the discussion of the dead link "
    "among torchvision's issues has it. Copies with a folder for each class do not contain the class numbers and "
    "cannot be used.",
)
TEST_LABELS = "cars_test_annos_withlabels.mat"


def load(data: Path, cache: Path, *, allow_nonstandard: bool = False) -> Dataset:
    """Load a standard copy of the dataset.

    allow_nonstandard: also run a copy of another size; its rows are marked `not Cars196`.

    Raises DatasetError if the copy is not the standard one or not complete; the message says what is wrong.
    """
    return STANDARD.guard(index(data), allow_nonstandard)


def index(data: Path) -> Dataset:
    """Read the annotations of either layout, without looking at the photographs.

    Raises DatasetError if the annotations are missing, damaged or lack the labels of the test images.
    """
    together = locate(data, "cars_annos.mat")
    images = locate(data, "car_ims", "cars_ims") or (together and inside(together.parent, "images"))
    if together and images:
        return _together(together, images)
    if locate(data, "cars_train_annos.mat"):
        return _devkit(data)
    reject_split_folders("cars196", data, STANDARD)
    if together and locate(data, "cars_train", "cars_test"):
        what = (
            "car_ims/, whose images cars_annos.mat numbers, nor cars_train_annos.mat for cars_train/ and cars_test/,"
        )
    elif together:
        what = "car_ims/ with the photographs"
    else:
        what = "cars_annos.mat, nor cars_train_annos.mat,"
    raise absent("cars196", data, STANDARD, what)


def _together(path: Path, images: Path) -> Dataset:
    """Read the layout with one folder; its file names may lack leading zeros."""
    images = inside(images, images.name) or images  # nested in some mirrors: car_ims/car_ims/
    annotations, files = _read(path), _by_number(images)
    names, keys = _class_names(annotations, path), _column(annotations, "relative_im_path", path)
    rows = []
    for key, number in zip(keys, _column(annotations, "class", path), strict=True):
        name = os.path.basename(key)
        photograph = _number(name)
        file = name if photograph is None else files.get(photograph, name)
        rows.append(_row(key, number, names, f"{images.name}/{file}"))
    return listed("cars196", images.parent, rows)


def _devkit(data: Path) -> Dataset:
    """Read the layout with two folders, which is split for classification, and join its halves."""
    meta, rows = _require(data, "cars_meta.mat"), []
    names = _class_names(_read(meta), meta)
    for folder, labels in (("cars_train", "cars_train_annos.mat"), ("cars_test", TEST_LABELS)):
        path, images = _require(data, labels), _require(data, folder)
        images = inside(images, folder) or images  # cars_train/cars_train/ in one mirror
        annotations = _read(path)
        files = _column(annotations, "fname", path)
        for file, number in zip(files, _column(annotations, "class", path), strict=True):
            rows.append(_row(f"{folder}/{file}", number, names, (images / file).relative_to(data).as_posix()))
    return listed("cars196", data, rows)


def _require(data: Path, name: str) -> Path:
    if path := locate(data, name):
        return path
    if name == TEST_LABELS and locate(data, "cars_test_annos.mat"):
        name += " (cars_test_annos.mat has no labels, so half of the images cannot be used)"
    raise absent("cars196", data, STANDARD, name)


def _row(key: str, number: float, names: list[str], file: str) -> Row:
    if not 1 <= number <= len(names):
        raise DatasetError(f"cars196: {key} is of class {number}, but there are only {len(names)} class names")
    number = int(number)
    return Row(key, f"{number:03}.{names[number - 1]}", "train" if number <= 98 else "test", file=file)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the variables of a MATLAB file."""
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except Exception as error:  # on bad bytes scipy raises anything from IndexError to zlib.error
        raise DatasetError(f"cars196: {path} is damaged or not a MATLAB file ({error}); download it again") from error


def _class_names(variables: dict[str, np.ndarray], path: Path) -> list[str]:
    if "class_names" not in variables:
        raise DatasetError(f"cars196: {path} contains no class_names; it is not the published file")
    return [str(name.item()) for name in variables["class_names"].ravel()]


def _column(variables: dict[str, np.ndarray], field: str, path: Path) -> list:
    """Return one field of all annotations."""
    annotations = variables.get("annotations")
    if annotations is None or field not in (annotations.dtype.names or ()):
        raise DatasetError(f"cars196: {path} contains no annotations with {field}; it is not the published file")
    return [value.item() for value in annotations[field].ravel()]


def _by_number(images: Path) -> dict[int, str]:
    """Return the image files of a folder by number: both 000001.jpg and 1.jpg are number 1."""
    names = [name for name in sorted(os.listdir(images)) if is_image(name)]
    return {number: name for name in names if (number := _number(name)) is not None}


def _number(name: str) -> int | None:
    """Return the number in a file name, such as 12 for 000012.jpg; None for other names."""
    stem = os.path.splitext(name)[0]
    return int(stem) if stem.isdigit() else None
