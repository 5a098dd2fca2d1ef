"""What every dataset is checked for, and the fingerprint of its index."""

import hashlib

import numpy as np
import pytest

from harness.data import datasets
from harness.data.datasets import Dataset, DatasetError, check


def dataset(rows, **changes):
    """A dataset of (class, split) rows, without pixels."""
    class_names = sorted({c for c, _ in rows})
    return Dataset(
        **{
            "name": "toy",
            "keys": tuple(f"{i}.png" for i in range(len(rows))),
            "labels": np.array([class_names.index(c) for c, _ in rows], dtype=np.int64),
            "class_names": tuple(class_names),
            "split": np.array([split for _, split in rows], dtype="<U10"),
            "read": None,
            **changes,
        }
    )


GOOD = [(c, split) for split, pair in (("train", "ab"), ("test", "cd")) for c in pair for _ in (1, 2)]


def test_a_valid_dataset_passes():
    check(dataset(GOOD))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "toy: no images"),
        (GOOD[:4], "toy: 0 classes in test, at least 2"),
        (GOOD[2:], "toy: 1 classes in train, at least 2"),
        ([*GOOD, ("a", "test"), ("b", "test")], r"toy: 2 classes in both train and test \(a, b\)"),
        ([*GOOD, ("c", "validation"), ("e", "validation")], r"toy: 1 classes in both validation and test \(c\)"),
        (GOOD[:5] + GOOD[6:7], "toy: every class in test has one image"),
        ([*GOOD, ("e", "validation")], "toy: 1 classes in validation, at least 2"),
        ([*GOOD, ("e", "validation"), ("f", "validation")], "toy: every class in validation has one image"),
    ],
)
def test_an_unfair_dataset_is_rejected(rows, message):
    with pytest.raises(DatasetError, match=message):
        check(dataset(rows))


def test_a_key_that_is_listed_twice_is_named():
    with pytest.raises(DatasetError, match=r"1 images are listed twice \(3.png\)"):
        check(dataset(GOOD, keys=("0.png", "1.png", "2.png", "3.png", "3.png", "5.png", "6.png", "7.png")))


def test_roles_must_cover_the_test_split_and_share_a_class():
    check(dataset(GOOD, role=np.array(["", "", "", "", "query", "gallery", "query", "gallery"])))
    with pytest.raises(DatasetError, match=r"1 test images are neither query nor gallery \(7.png\)"):
        check(dataset(GOOD, role=np.array(["", "", "", "", "query", "gallery", "query", ""])))
    with pytest.raises(DatasetError, match="no class in test has both a query and a gallery image"):
        check(dataset(GOOD, role=np.array(["", "", "", "", "query", "query", "gallery", "gallery"])))


def test_index_fingerprint_is_the_sha256_of_the_sorted_rows():
    two = dataset([("b", "test"), ("a", "train")], keys=("y", "x"))
    assert two.index_fingerprint == hashlib.sha256(b"x\0a\0train\0\ny\0b\0test\0").hexdigest()
    turned = dataset([("a", "train"), ("b", "test")], keys=("x", "y"))
    assert turned.index_fingerprint == two.index_fingerprint
    moved = dataset([("b", "train"), ("a", "train")], keys=("y", "x"))
    assert moved.index_fingerprint != two.index_fingerprint


def test_misspelled_names_and_options_get_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="no dataset named 'glyhps'; did you mean 'glyphs'"):
        datasets.load("glyhps")
    with pytest.raises(DatasetError, match="'clases'; did you mean 'classes'"):
        datasets.load("glyphs", cache=tmp_path, clases=3)
    with pytest.raises(DatasetError, match=r"test_share = 'half', expected something like 0.5"):
        datasets.load("folder", tmp_path, tmp_path, test_share="half")
    with pytest.raises(DatasetError, match="mirrored = 1, expected something like True"):
        datasets.load("folder", tmp_path, tmp_path, mirrored=1)
