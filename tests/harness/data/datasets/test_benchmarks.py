"""The contract of every published benchmark: the standard numbers, and messages about other copies."""

from importlib import import_module

import numpy as np
import pytest

from harness.data import datasets, scorable
from harness.data.datasets import DatasetError
from harness.data.splits import fair_validation

BENCHMARKS = [name for name in datasets.names() if datasets.standard(name)]
every = pytest.mark.parametrize("name", BENCHMARKS)


@pytest.fixture
def written(tmp_path):
    return lambda name, *settings: import_module(f"tests.harness.data.datasets.sources.{name}").write(
        tmp_path, *settings
    )


def test_which_benchmarks_exist():
    assert BENCHMARKS == ["cars196", "cub200", "inshop", "sop"]


@every
def test_lists_of_the_standard_size_make_the_standard_dataset(name, written):
    standard = datasets.standard(name)
    assert standard is not None
    data = written(name, 1, False)
    dataset = datasets.index(name, data)
    assert standard.deviations(dataset) == ()
    assert datasets.problems(dataset) == []
    assert [(dataset.split == split).sum() for split in ("train", "test")] == list(standard.images)
    assert len(dataset.class_names) == sum(standard.classes)
    validation = np.unique(dataset.labels[fair_validation(dataset) == "validation"])
    assert len(validation) == -(-standard.classes[0] // 5)
    with pytest.raises(DatasetError, match=f"{name}: .* files are missing in .*: the lists and the images do not"):
        datasets.load(name, data)


@every
def test_the_k_of_recall_are_the_usual_ones(name, written):
    ks = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}
    assert datasets.index(name, written(name)).ks == ks.get(name, (1, 2, 4, 8))


@every
def test_another_size_is_rejected_unless_allowed(name, written):
    data, standard = written(name), datasets.standard(name)
    assert standard is not None
    train, test = standard.images
    with pytest.raises(
        DatasetError, match=rf"^FAIR-01 {name}: 16/16 images, expected {train}/{test}\. .*`not {standard.title}`"
    ):
        datasets.load(name, data)
    dataset = datasets.load(name, data, allow_nonstandard=True)
    assert dataset.deviations[0] == f"16/16 images, expected {train}/{test}."
    stock = 8 if name == "inshop" else 16
    asked = scorable.scores(dataset, dataset.split)
    left_out = [k for k in dataset.ks if k > stock - (dataset.role is None)]
    assert asked.ks["test"] == tuple(k for k in dataset.ks if k not in left_out)
    assert all(f"R@{k}" in asked.notes["test"] for k in left_out)
    assert dataset.mirrored


@every
def test_files_of_the_finder_are_left_out_and_grey_images_are_read(name, written):
    dataset = datasets.load(name, written(name, 0.01), allow_nonstandard=True)
    assert not any("._" in key for key in dataset.keys)
    modes = {dataset.read(i).mode for i in range(len(dataset))}
    assert modes == {"RGB", "L"}
    assert {dataset.read(i).size for i in range(8)} == {(48, 36), (36, 48), (40, 40), (56, 32)}


@every
def test_the_folder_itself_and_another_case_of_its_name_work(name, written):
    data = written(name)
    inner = next(path for path in data.iterdir() if path.is_dir())
    first = datasets.load(name, data, allow_nonstandard=True)
    assert datasets.load(name, inner, allow_nonstandard=True).index_fingerprint == first.index_fingerprint
    inner.rename(data / inner.name.upper())
    again = datasets.load(name, data, allow_nonstandard=True)
    assert again.index_fingerprint == first.index_fingerprint


@every
def test_an_archive_that_is_still_packed_is_named(name, tmp_path):
    (tmp_path / "photographs.tgz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"photographs\.tgz is still packed: extract first\n  What goes where"):
        datasets.load(name, tmp_path)


@every
def test_files_that_do_not_exist_are_named(name, written):
    data = written(name)
    whole = datasets.load(name, data, allow_nonstandard=True)
    assert whole.files is not None
    for i in (3, 7):
        (data / whole.files[i]).unlink()
    with pytest.raises(
        DatasetError, match=rf"{name}: 2 of 32 files are missing in .* \({whole.keys[3]}, {whole.keys[7]}\)"
    ):
        datasets.load(name, data, allow_nonstandard=True)


@every
def test_a_replaced_file_gives_another_stamp_and_the_same_fingerprint(name, written):
    data = written(name)
    before = datasets.load(name, data, allow_nonstandard=True)
    assert before.files is not None
    with open(before.files[5], "ab") as file:
        file.write(b"\0")
    after = datasets.load(name, data, allow_nonstandard=True)
    assert before.source_stamp != after.source_stamp
    assert before.index_fingerprint == after.index_fingerprint
