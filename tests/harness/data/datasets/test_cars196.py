"""The cars: two layouts of annotations, other file names, missing labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import datasets
from harness.data.datasets import DatasetError, cars196
from harness.data.datasets._files import Row, listed
from harness.data.datasets._layout import reject_split_folders
from harness.data.datasets._standard import CLASSIFICATION
from tests.harness.data.datasets.fixtures import photograph
from tests.harness.data.datasets.sources.cars196 import write, write_devkit

load: dict[str, Any] = {"allow_nonstandard": True}


def classes(dataset):
    return {
        split: {int(dataset.class_names[c][:3]) for c in np.unique(dataset.labels[dataset.split == split])}
        for split in ("train", "test")
    }


@pytest.mark.parametrize("layout", [write, write_devkit])
def test_both_layouts_contain_the_same_classes(tmp_path, layout):
    dataset = datasets.load("cars196", layout(tmp_path), **load)
    assert classes(dataset) == {"train": {1, 2, 3, 4}, "test": {99, 100, 101, 102}}
    assert dataset.class_names[0] == "001.Maker Model 1 Sedan 2012"
    assert len(dataset) == 32
    assert {dataset.read(i).size for i in range(32)} == {(48, 36), (36, 48), (40, 40), (56, 32)}


def test_keys_are_as_the_annotations_write_them(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert datasets.load("cars196", write(tmp_path / "a"), **load).keys[0] == "car_ims/000001.jpg"
    keys = datasets.load("cars196", write_devkit(tmp_path / "b"), **load).keys
    assert {"cars_train/00001.jpg", "cars_test/00016.jpg"} <= set(keys)


@pytest.mark.parametrize("folder", ["images", "Car_Ims", "car_ims/car_ims"])
def test_mirrors_with_other_names_give_the_same_dataset(tmp_path, folder):
    first = datasets.load("cars196", write(tmp_path), **load)
    home = tmp_path / "cars196"
    for path in (home / "car_ims").glob("0*.jpg"):
        path.rename(path.with_name(f"{int(path.stem):05}.jpg"))
    (home / "car_ims").rename(home / "aside")
    (home / folder).parent.mkdir(exist_ok=True)
    (home / "aside").rename(home / folder)
    again = datasets.load("cars196", tmp_path, **load)
    assert again.index_fingerprint == first.index_fingerprint
    assert again.read(9).size == (36, 48)


def test_a_mirror_with_a_nested_folder(tmp_path):
    first = datasets.load("cars196", write_devkit(tmp_path), **load)
    for part in ("cars_train", "cars_test"):
        (tmp_path / part).rename(tmp_path / "aside")
        (tmp_path / part).mkdir()
        (tmp_path / "aside").rename(tmp_path / part / part)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").rename(tmp_path / "cars_test_annos_withlabels.mat")
    assert datasets.load("cars196", tmp_path, **load).index_fingerprint == first.index_fingerprint


def test_a_devkit_without_the_labels_of_the_test_images(tmp_path):
    write_devkit(tmp_path)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DatasetError, match=r"no cars_test_annos_withlabels.mat \(cars_test_annos.mat has no labels"):
        datasets.load("cars196", tmp_path, **load)
    (tmp_path / "devkit" / "cars_test_annos.mat").rename(tmp_path / "devkit" / "cars_test_annos_withlabels.mat")
    with pytest.raises(
        DatasetError, match=r"withlabels\.mat contains no annotations with class; it is not the published"
    ):
        datasets.load("cars196", tmp_path, **load)


def test_annotations_of_one_layout_with_the_images_of_the_other(tmp_path):
    home = write(tmp_path) / "cars196"
    (home / "car_ims").rename(home / "cars_train")
    with pytest.raises(DatasetError, match=r"no car_ims/, whose images cars_annos.mat numbers, nor cars_train_annos"):
        datasets.load("cars196", tmp_path, **load)


def test_the_classification_split_in_folders_is_recognised(tmp_path):
    for part, images in (("train", 3), ("test", 2)):
        for i in range(images):
            photograph(tmp_path / "car_data" / "car_data" / part / "Acura RL Sedan 2012" / f"{i:05}.jpg", "Acura", i)
    with pytest.raises(
        DatasetError, match=r"^FAIR-01 cars196: 3/2 images, expected 8054/8131\. 1 classes are in both"
    ):
        datasets.load("cars196", tmp_path)
    standard = datasets.standard("cars196")
    assert standard is not None
    assert standard.look_alikes[8144, 8041] == CLASSIFICATION
    known = replace(standard, look_alikes={(3, 2): CLASSIFICATION})
    with pytest.raises(DatasetError, match=r"expected 8054/8131\. This is the classification split \(same classes"):
        reject_split_folders("cars196", tmp_path, known)


def test_half_of_the_classification_split_is_recognised():
    classes = np.arange(8144) % 196 + 1
    rows = [Row(f"{i}.jpg", f"{c:03}.car", "train" if c <= 98 else "test") for i, c in enumerate(classes)]
    found = cars196.STANDARD.deviations(listed("cars196", Path(), rows))
    assert found[1] == "These are the training images of the classification split alone."


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>404 Not Found</html>"]
)
def test_a_damaged_annotation_file_is_named(tmp_path, damage):
    path = write(tmp_path) / "cars196" / "cars_annos.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"cars_annos\.mat is damaged or not a MATLAB file .*; download it again"):
        datasets.load("cars196", tmp_path, **load)


def test_train_and_test_folders_of_other_classes_are_not_a_split(tmp_path):
    for part, name in (("train", "a"), ("test", "b")):
        photograph(tmp_path / part / name / "1.jpg", name, 1)
    with pytest.raises(
        DatasetError, match=r"FAIR-01 cars196: 1/1 images, expected 8054/8131\. .* contains train/ and test/"
    ):
        datasets.load("cars196", tmp_path)
