"""Every file of a random folder is indexed, ignored and counted, or rejected with a reason."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import reports
from harness.config import Choice
from harness.data import datasets, doctor
from harness.data.cache import default_folder
from harness.data.datasets import DatasetError, _dataset
from harness.errors import UserError, printable
from harness.grid import Grid
from harness.launch.plan import make_plan
from harness.leaderboard import collection
from harness.reports import gallery
from harness.training.pictures import Sources, prepare_images
from harness.training.trial import run_trial
from tests.harness import random_inputs

CACHE = default_folder()
FORMATS = [name for name in reports.names() if name not in ("figures", "picture")]


@pytest.fixture(autouse=True)
def _every_example(monkeypatch):
    """Name all ignored files."""
    monkeypatch.setattr(_dataset, "EXAMPLES", 10**6)


def loaded(name, folder):
    """Return the dataset; None if it is rejected with a message that can be printed."""
    try:
        return datasets.load(name, folder, folder)
    except DatasetError as error:
        str(error).encode()
        return None


def examined(name, folder):
    found = doctor.examine(name, folder, folder)
    for sentence in (*(finding.sentence for finding in found.findings), *found.unreadable):
        assert sentence.encode()
    return found


@given(random_inputs.trees())
@random_inputs.examples(60)
def test_a_folder_is_indexed_ignored_or_rejected(tree):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve() / "outer" / "data"
        random_inputs.write_tree(folder, tree)
        try:
            dataset, found = loaded("folder", folder), examined("folder", folder)
            assert (dataset is None) <= (not found.sound), "the doctor accepts what a run rejects"
            if dataset is None:
                return
            passed = [path for one in dataset.passed_over for path in one.examples]
            assert len(passed) == sum(one.count for one in dataset.passed_over)
            known = {*dataset.keys, *passed}
            random_inputs.reopen(folder)
            for path in map(printable, random_inputs.all_files(folder)):
                assert known & {path, *map(str, Path(path).parents)}, f"{path} is lost"
            assert len({os.path.realpath(file) for file in dataset.files or ()}) == len(dataset)
            assert not {*dataset.keys} & {*passed}
            assert dataset.index_fingerprint == found.fingerprint
        finally:
            random_inputs.reopen(folder)


def tiny(name, batch_size=8, examples_per_class=2, sampler="balanced", **settings):
    """Return a grid of one tiny trial on a dataset."""
    content = {
        "name": "tiny",
        "datasets": [name],
        "backbones": ["test_resnet"],
        "losses": ["contrastive"],
        "levels": ["baseline"],
        "floors": [],
        "seeds": [0],
        "model": {"dim": 4},
        "images": {"side_px": 8},
        "training": {
            "epochs": 1,
            "batch_size": batch_size,
            "examples_per_class": examples_per_class,
            "sampler": sampler,
        },
        **settings,
    }
    return Grid.model_validate(Grid.model_validate(content).model_dump(mode="json"))


GRIDS = st.builds(
    lambda path, training, protocol, folds, ks: tiny(
        "folder", **training, images={"side_px": 8, "path": path}, protocol=protocol, folds=folds, ks=ks
    ),
    st.sampled_from(["cache", "classical"]),
    st.sampled_from([{}, {"batch_size": 12}, {"batch_size": 30, "sampler": "shuffle"}, {"examples_per_class": 4}]),
    st.sampled_from(["fair", "paper"]),
    st.sampled_from([None, None, 2]),
    st.sampled_from([None, [1], [1, 17, 18]]),
)


def planned(grid, data, place):
    """Return the plan of a grid and decode its images; None if it is rejected with a message."""
    try:
        plan = make_plan(grid, data, CACHE)
        prepare_images(plan.trials, Sources(place / "run", data, CACHE), lambda sentence: None)
        return plan
    except UserError as error:
        str(error).encode()
        return None


def finished(trial, data, place):
    """Run a trial, write every report about it, and return its record."""
    record = run_trial(trial, place / "run", data, CACHE, "cpu")
    found = collection.collect([place / "run"])
    board = gallery.with_gallery(found.board(), found, data, CACHE)
    for path in reports.write_all(board, place / "run", FORMATS):
        assert path.stat().st_size
    return record


def dataset_all_agree_on(name, grid, data, place):
    """Check that the doctor, the plan and one trial agree on a dataset; return it, or None if no trial runs."""
    found = examined(name, data)
    assert (planned(tiny(name), data, place) is not None) == found.sound
    plan = planned(grid.model_copy(update={"datasets": (Choice(name=name),)}), data, place)
    if plan is None:
        return None
    record, dataset = finished(plan.trials[-1], data, place), loaded(name, data)
    assert dataset is not None
    assert sum(record.data.images.values()) == len(dataset) == sum(images for images, _ in found.counts.values())
    assert record.data.passed_over == dataset.passed_over
    return dataset


@given(random_inputs.trees(3), GRIDS)
@random_inputs.examples(10)
def test_a_folder_that_the_plan_accepts_finishes(tree, grid):
    with tempfile.TemporaryDirectory() as place:
        data = Path(place).resolve() / "outer" / "data"
        random_inputs.write_tree(data, tree)
        try:
            dataset_all_agree_on("folder", grid, data, Path(place))
        finally:
            random_inputs.reopen(data)


@given(random_inputs.manifests(), GRIDS)
@random_inputs.examples(10)
def test_a_manifest_that_the_plan_accepts_finishes(case, grid):
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        random_inputs.write_tree(data, [])
        (data / "manifest.csv").write_bytes(random_inputs.manifest(*case))
        dataset_all_agree_on("manifest", grid, data, Path(place))


@given(random_inputs.manifests())
@random_inputs.examples(60)
def test_a_manifest_is_indexed_or_rejected(case):
    rows, encoding, line_end = case
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        random_inputs.write_tree(folder, [])
        (folder / "manifest.csv").write_bytes(random_inputs.manifest(rows, encoding, line_end))
        dataset, found = loaded("manifest", folder), examined("manifest", folder)
        assert (dataset is None) == (not found.sound)
        if dataset is not None:
            assert len(dataset) == len(random_inputs.CLASSES) * random_inputs.IMAGES + len(rows)
