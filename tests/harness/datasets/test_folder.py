"""One folder per class."""

import pytest

from harness import datasets
from harness.datasets import DatasetError
from harness.splits import hash_order
from tests.harness.datasets.sources.folder import image, write


def test_classes_are_split_by_hash(tmp_path):
    dataset = datasets.load("folder", write(tmp_path), test_share=0.5)
    assert len(dataset) == 24
    assert dataset.keys[0] == "ant/1.png"
    first = {dataset.class_names[c] for c in hash_order(dataset.class_names, "test-1")[:4]}
    assert {dataset.class_names[c] for c in dataset.labels[dataset.split == "test"]} == first
    assert dataset.mirrored
    assert not datasets.load("folder", tmp_path, mirrored=False).mirrored


def test_split_folders_are_kept_and_images_may_lie_deeper(tmp_path):
    for path in (
        "train/a/1.png",
        "train/a/x/2.png",
        "train/b/1.png",
        "validation/e/1.png",
        "validation/e/2.png",
        "validation/f/1.png",
    ):
        image(tmp_path / path)
    for path in ("test/c/1.png", "test/c/2.JPG", "test/d/1.png"):
        image(tmp_path / path)
    dataset = datasets.load("folder", tmp_path)
    found = dict(zip(dataset.keys, dataset.split.tolist(), strict=True))
    assert len(found) == 9
    assert found["train/a/x/2.png"] == "train"
    assert found["test/c/2.JPG"] == "test"
    assert found["validation/e/1.png"] == "validation"
    assert dataset.class_names == ("a", "b", "c", "d", "e", "f")


def test_a_class_in_both_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            image(tmp_path / split / name / "1.png")
            image(tmp_path / split / name / "2.png")
    with pytest.raises(DatasetError, match=r"2 classes in both train and test \(a, b\)"):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.png", "b.png"], "no class folders with images"),
        (["a/1.png", "b/1.png", "c/1.png", "d/1.png"], "every class in train has one image"),
        (["train/a/1.png"], "holds train/; train/ and test/ are both needed"),
        (["train/a/1.png", "test/b/1.png", "tset/c/1.png"], "beside them tset: split or class"),
    ],
)
def test_layouts_that_are_refused(tmp_path, paths, message):
    for path in paths:
        image(tmp_path / path)
    with pytest.raises(DatasetError, match=message):
        datasets.load("folder", tmp_path)


def test_a_file_and_an_impossible_share_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="is a file; name the folder"):
        datasets.load("folder", __file__)
    with pytest.raises(ValueError, match=r"share = 1.5"):
        datasets.load("folder", write(tmp_path), test_share=1.5)


def test_a_replaced_image_changes_the_stamp_but_not_the_index(tmp_path):
    before = datasets.load("folder", write(tmp_path))
    image(tmp_path / "ant/1.png", side_px=40)
    after = datasets.load("folder", tmp_path)
    assert before.index_fingerprint == after.index_fingerprint
    assert before.source_stamp != after.source_stamp
