"""The birds: lists and folders, and copies that are known to be wrong."""

from pathlib import Path

import numpy as np
import pytest

from harness.data import datasets
from harness.data.datasets import DatasetError, cub200
from harness.data.datasets._files import Row, listed
from tests.harness.data.datasets.fixtures import photograph
from tests.harness.data.datasets.sources.cub200 import write


def test_classes_are_split_by_number_not_by_the_classification_split(tmp_path):
    dataset = datasets.load("cub200", write(tmp_path), allow_nonstandard=True)
    numbers = np.array([int(name[:3]) for name in dataset.class_names])[dataset.labels]
    assert set(numbers[dataset.split == "train"]) == {1, 2, 3, 4}
    assert set(numbers[dataset.split == "test"]) == {101, 102, 103, 104}
    assert dataset.keys[0] == "001.Bird_1/Bird_1_0000_1000.jpg"
    assert dataset.ks == (1, 2, 4, 8)


def test_a_mirror_without_lists_is_the_same_dataset(tmp_path):
    listed = datasets.load("cub200", write(tmp_path), allow_nonstandard=True)
    for path in (tmp_path / "CUB_200_2011").glob("*.txt"):
        path.unlink()
    unlisted = datasets.load("cub200", tmp_path, allow_nonstandard=True)
    assert unlisted.index_fingerprint == listed.index_fingerprint
    alone = datasets.load("cub200", tmp_path / "CUB_200_2011" / "images", allow_nonstandard=True)
    assert alone.index_fingerprint == listed.index_fingerprint


def test_a_partly_extracted_archive_lacks_classes(tmp_path):
    home = write(tmp_path, 1, False) / "CUB_200_2011"
    lines = (home / "images.txt").read_text().splitlines()
    for name in ("images.txt", "image_class_labels.txt"):
        (home / name).write_text("\n".join((home / name).read_text().splitlines()[:9000]))
    assert lines[8999].split()[1].startswith("153")
    with pytest.raises(DatasetError, match=r"5864/3136 images, expected 5864/5924.*test lacks 47 classes \(154, 155"):
        datasets.load("cub200", tmp_path)


def birds(folder, classes, images, start=1):
    for c in range(start, start + classes):
        for i in range(images):
            photograph(folder / f"{c:03}.Bird_{c}" / f"{i}.jpg", f"{c}", i)


def test_the_classification_split_in_folders_is_recognised(tmp_path):
    for part in ("train", "test"):
        birds(tmp_path / "birds" / part, 6, 3)
    with pytest.raises(
        DatasetError, match=r"^FAIR-01 cub200: 18/18 images, expected 5864/5924\. 6 classes are in both"
    ):
        datasets.load("cub200", tmp_path, allow_nonstandard=True)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (5994, 5794, "This is the classification split (same classes in train and test)."),
        (3000, 3033, "This is the edition of 2010 (CUB-200), which has other images."),
        (3000, 2994, "These are the training images of the classification split alone."),
    ],
)
def test_other_copies_are_recognised_by_their_size(train, test, words):
    rows = [Row(f"{i}.jpg", f"{i % 100 + 1:03}.Bird", "train") for i in range(train)]
    rows += [Row(f"{i}_.jpg", f"{i % 100 + 101:03}.Bird", "test") for i in range(test)]
    found = cub200.STANDARD.deviations(listed("cub200", Path(), rows))
    assert found == (f"{train}/{test} images, expected 5864/5924.", words)


def test_contradicting_lists_are_rejected(tmp_path):
    home = write(tmp_path) / "CUB_200_2011"
    labels = (home / "image_class_labels.txt").read_text()
    (home / "image_class_labels.txt").write_text(labels.replace("1 1\n", "1 2\n", 1))
    with pytest.raises(DatasetError, match=r"puts 1 images into another class than their folder \(001.Bird_1/"):
        datasets.load("cub200", tmp_path)
    (home / "image_class_labels.txt").write_text("\n".join(labels.splitlines()[:-2]))
    with pytest.raises(DatasetError, match=r"2 image numbers are in only one of .*\(31, 32\).*cut short"):
        datasets.load("cub200", tmp_path)
    (home / "image_class_labels.txt").write_text(labels + "33\n")
    with pytest.raises(DatasetError, match=r"1 lines of .*image_class_labels.txt are not `number value` \(33\)"):
        datasets.load("cub200", tmp_path)
    (home / "image_class_labels.txt").unlink()
    with pytest.raises(DatasetError, match=r"no image_class_labels.txt beside"):
        datasets.load("cub200", tmp_path)


def test_images_outside_of_class_folders_are_named(tmp_path):
    write(tmp_path)
    for path in (tmp_path / "CUB_200_2011").glob("*.txt"):
        path.unlink()
    photograph(tmp_path / "CUB_200_2011" / "images" / "birds" / "1.jpg", "birds", 1)
    with pytest.raises(
        DatasetError, match=r"1 images are in no folder like 001.Black_footed_Albatross \(birds/1.jpg"
    ):
        datasets.load("cub200", tmp_path)
