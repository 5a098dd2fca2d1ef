"""The contract of every dataset, found by its file."""

import pickle

import numpy as np
import pytest

from harness import registry
from harness.data import datasets
from harness.data.splits import fair_validation

every = pytest.mark.parametrize("name", datasets.names())


@every
def test_index_is_complete_disjoint_and_the_same_each_time(name, load_source):
    dataset, again = load_source(name), load_source(name)
    count = len(dataset)
    assert dataset.name == name
    assert len(dataset.labels) == len(dataset.split) == len(set(dataset.keys)) == count
    assert dataset.labels.dtype == np.int64
    assert set(dataset.labels) == set(range(len(dataset.class_names)))
    assert len(set(dataset.class_names)) == len(dataset.class_names)
    splits_of = {(label, split) for label, split in zip(dataset.labels, dataset.split, strict=True)}
    assert len(splits_of) == len(dataset.class_names), "a class lies in two splits"
    assert {"train", "test"} <= set(dataset.split)
    assert dataset.groups is None or len(dataset.groups) == len(dataset.class_names)
    assert dataset.index_fingerprint == again.index_fingerprint
    assert dataset.pixel_fingerprint == again.pixel_fingerprint
    assert dataset.pixel_fingerprint or dataset.source_stamp, "nothing would tell that the images have changed"
    assert len({"train", "validation"} & set(fair_validation(dataset))) == 2


@every
def test_images_are_grey_or_rgb_and_can_be_pickled(name, load_source):
    dataset = load_source(name)
    there = pickle.loads(pickle.dumps(dataset))
    for i in (0, len(dataset) - 1):
        assert dataset.read(i).mode in ("L", "RGB")
        assert dataset.read(i).tobytes() == there.read(i).tobytes()


@every
def test_it_describes_itself_and_its_options(name):
    description = datasets.describe(name)
    assert description.title.endswith(".")
    load = registry.entry("harness.data.datasets", name, "dataset").load
    for option in description.options:
        assert f"{option}:" in load.__doc__, f"the docstring does not explain {option}"


@every
def test_unusable_data_are_rejected(name, tmp_path, cache):
    with pytest.raises(datasets.DatasetError, match=f"no option of dataset '{name}' named 'colour'"):
        datasets.load(name, tmp_path, cache, colour="red")
    if datasets.describe(name).needs_data:
        with pytest.raises(datasets.DatasetError, match="say where it is"):
            datasets.load(name, None, cache)
        with pytest.raises(datasets.DatasetError, match=r"there is no .*nowhere"):
            datasets.load(name, tmp_path / "nowhere", cache)
        with pytest.raises(datasets.DatasetError, match=f"{name}: .*{tmp_path}"):
            datasets.load(name, tmp_path, cache)  # the empty folder
