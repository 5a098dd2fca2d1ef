"""Handwriting from overlapping archives, packed or not."""

import os
import zipfile

import pytest

from harness.data import datasets
from harness.data.datasets import DatasetError
from harness.data.splits import fair_validation
from tests.harness.data.datasets.sources import omniglot as source


def test_a_drawing_in_two_archives_counts_once(tmp_path):
    dataset = datasets.load("omniglot", source.write(tmp_path))
    assert sorted(dataset.keys) == sorted(source.keys(("Balinese", "Greek", "Latin", "Tagalog")))
    assert len(dataset.class_names) == 8
    assert dataset.class_names[0] == "Balinese/character01"
    assert dataset.mirrored is False


def test_whole_alphabets_are_held_out(tmp_path):
    dataset = datasets.load("omniglot", source.write(tmp_path))
    assert dataset.groups is not None
    split_of = {(dataset.groups[c], str(s)) for c, s in zip(dataset.labels, dataset.split, strict=True)}
    assert len(split_of) == 4
    assert [split for _, split in split_of].count("test") == 2


def test_folders_zips_and_both_together_are_the_same_dataset(tmp_path):
    packed, unpacked, both = (tmp_path / name for name in ("packed", "unpacked", "both"))
    for folder in (packed, unpacked, both):
        folder.mkdir()
    source.write(packed)
    source.write(both)
    for archive in packed.glob("*.zip"):
        zipfile.ZipFile(archive).extractall(unpacked)
        zipfile.ZipFile(archive).extractall(both / "more" / archive.stem)
    loaded = [datasets.load("omniglot", folder) for folder in (packed, unpacked, both)]
    assert len({d.index_fingerprint for d in loaded}) == len({d.source_stamp for d in loaded}) == 1
    assert all(loaded[0].read(i).tobytes() == loaded[1].read(i).tobytes() for i in range(10))
    one = datasets.load("omniglot", packed / "omniglot_images_background_small1.zip")
    assert len(one) == 24


def test_two_drawings_of_one_name_and_a_damaged_zip_are_named(tmp_path):
    source.write(tmp_path)
    other = tmp_path / "images_background/Greek/character01/0001_01.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(source.drawing("another"))
    with pytest.raises(DatasetError, match=r"two different drawings are named Greek/character01/0001_01.png"):
        datasets.load("omniglot", tmp_path)
    other.unlink()
    zipped = tmp_path / "omniglot_images_background_small2.zip"
    zipped.write_bytes(zipped.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"small2.zip is damaged"):
        datasets.load("omniglot", tmp_path)


@pytest.mark.skipif("OMNIGLOT" not in os.environ, reason="OMNIGLOT names no folder with the two small official sets")
def test_the_official_small_sets():
    dataset = datasets.load("omniglot", os.environ["OMNIGLOT"])
    assert (len(dataset.class_names), len(dataset)) == (242, 4840)
    split = fair_validation(dataset)
    assert dataset.groups is not None
    alphabets = [{dataset.groups[c] for c in dataset.labels[split == s]} for s in ("train", "validation", "test")]
    assert [len(a) for a in alphabets] == [3, 1, 4]
    assert dataset.read(0).size == (105, 105)


def test_other_files_are_counted_as_ignored(tmp_path):
    source.write(tmp_path)
    (tmp_path / "readme.txt").touch()
    (tmp_path / "Greek" / "character01").mkdir(parents=True)
    (tmp_path / "Greek" / "character01" / "0001_01.PNG").touch()
    (tmp_path / ".DS_Store").touch()
    passed = datasets.load("omniglot", tmp_path).passed_over
    assert not any(str(tmp_path) in path for one in passed for path in one.examples), "no path of this machine"
    found = {one.reason: one.count for one in passed}
    assert found.pop("copies of a drawing of the same character") > 0
    assert found.pop("files and folders of an operating system or a storage device") == 1
    assert found.pop("files that are not drawings") >= 2
    assert found == {}
