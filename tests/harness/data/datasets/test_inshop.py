"""The clothes: queries, the gallery, and folders under many names."""

from typing import Any

import numpy as np
import pytest

from harness.data import datasets
from harness.data.datasets import DatasetError
from tests.harness.data.datasets.sources.inshop import write

load: dict[str, Any] = {"allow_nonstandard": True}


def test_test_images_are_queries_or_gallery(tmp_path):
    dataset = datasets.load("inshop", write(tmp_path), **load)
    test = dataset.split == "test"
    assert dataset.role is not None
    assert set(dataset.role[~test]) == {""}
    assert set(dataset.role[test]) == {"query", "gallery"}
    for role in ("query", "gallery"):
        assert len(np.unique(dataset.labels[dataset.role == role])) == 4
    assert dataset.keys[0] == "img/WOMEN/Blouses_Shirts/id_00000001/01_1_front.jpg"


@pytest.mark.parametrize(
    ("home", "list_in"),
    [
        ("InShop_Clothes/Img/img", "InShop_Clothes/Eval"),
        ("inshop/img", "inshop/eval"),
        ("In-shop Clothes Retrieval Benchmark/Img/img/img", "In-shop Clothes Retrieval Benchmark/Eval"),
        ("in-shop/img", "in-shop/Info_Files"),
        ("img", "."),
    ],
)
def test_folders_may_have_several_names(tmp_path, home, list_in):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = datasets.load("inshop", write(tmp_path / "first"), **load)
    other = datasets.load("inshop", write(tmp_path / "second", home=home, list_in=list_in), **load)
    assert other.index_fingerprint == first.index_fingerprint
    assert other.read(3).tobytes() == first.read(3).tobytes()


def test_resolutions_are_distinguished(tmp_path):
    write(tmp_path, home="Inshop_Clothes/Img/img_highres")
    with pytest.raises(
        DatasetError, match=r"no img/ with .* low resolution \(but img_highres/: the option resolution: high"
    ):
        datasets.load("inshop", tmp_path, **load)
    high = datasets.load("inshop", tmp_path, resolution="high", **load)
    assert high.files is not None
    assert "img_highres" in high.files[0]
    write(tmp_path)
    low = datasets.load("inshop", tmp_path, **load)
    assert low.files is not None
    assert "img_highres" not in low.files[0]
    assert low.index_fingerprint == high.index_fingerprint
    with pytest.raises(DatasetError, match="no resolution named 'hihg'; did you mean 'high'"):
        datasets.load("inshop", tmp_path, resolution="hihg", **load)


def test_a_truncated_or_wrong_partition_is_named(tmp_path):
    path = write(tmp_path) / "Inshop_Clothes" / "Eval" / "list_eval_partition.txt"
    lines = path.read_text().splitlines()
    for content, words in (
        (lines[:-3], "announces 32 images and lists 29: it was cut short"),
        ([*lines[:-1], lines[-1][:60]], r"1 lines of .* are not `image item train\|query\|gallery`"),
        ([*lines[:-1], lines[-1].replace("gallery", "val")], r"1 lines of .* are not `image item train"),
        (lines[1:], "does not begin with a number of images and `image_name item_id evaluation_status`"),
        ([], "does not begin with a number"),
    ):
        path.write_text("\n".join(content))
        with pytest.raises(DatasetError, match=words):
            datasets.load("inshop", tmp_path, **load)


def test_missing_photographs_are_named(tmp_path):
    write(tmp_path, photographs=False)
    (tmp_path / "Inshop_Clothes" / "Img" / "img" / "WOMEN").rmdir()
    with pytest.raises(DatasetError, match="no img/ with the photographs of low resolution in"):
        datasets.load("inshop", tmp_path, **load)
