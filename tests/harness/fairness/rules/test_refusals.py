"""What the rules forbid does not begin: grids, data and evaluators are refused before anything runs."""

import pytest

from harness.config import Choice
from harness.errors import GridError
from harness.grid import Grid
from harness.launch.plan import make_plan
from harness.training import trial
from harness.training.trial import Unfair, run_trial

GRID = """
name: tiny
datasets: [{name: glyphs, options: {classes: 16}}]
backbones: [test_resnet]
losses: [contrastive]
levels: [baseline]
training: {epochs: 1, batch_size: 20}
"""


@pytest.fixture
def load(tmp_path):
    def load(more=""):
        path = tmp_path / "tiny.yaml"
        path.write_text(GRID + more)
        return Grid.load(path)

    return load


def test_a_grid_that_selects_on_the_test(load):
    with pytest.raises(GridError, match=r"FAIR-04 selection.metric = test/R@1. Use val/R@1 or val/MAP@R."):
        load("selection: {metric: test/R@1}\n")
    assert load().name == "tiny"


@pytest.fixture
def broken_evaluator(monkeypatch):
    trial.evaluator_faults.cache_clear()
    monkeypatch.setattr(trial.retrieval, "conformance", lambda evaluate: ["constant embedding scored R@1 = 1.000"])
    yield
    trial.evaluator_faults.cache_clear()


@pytest.mark.usefixtures("broken_evaluator")
def test_an_evaluator_that_is_wrong(load, make_trial, tmp_path):
    with pytest.raises(GridError, match=r"FAIR-16 constant embedding scored R@1 = 1.000."):
        make_plan(load())
    with pytest.raises(Unfair, match="FAIR-16"):
        run_trial(make_trial(), tmp_path)
    assert not (tmp_path / "records").exists()


def test_a_class_in_two_splits(load, make_trial, tmp_path, monkeypatch):
    """A split that puts one training class into validation image by image."""

    def careless(dataset, protocol, fold=None, folds=None):
        split = dataset.split.astype("<U10")
        first = (dataset.labels == dataset.labels[split == "train"][0]).nonzero()[0]
        split[first[::2]] = "validation"
        return split

    monkeypatch.setattr("harness.training.trial.split_of", careless)
    monkeypatch.setattr("harness.launch.plan.split_of", careless)
    with pytest.raises(GridError, match="datasets: FAIR-02 glyphs: 1 class in both train and validation"):
        make_plan(load())
    small = make_trial().model_copy(update={"dataset": Choice(name="glyphs", options={"classes": 16})})
    with pytest.raises(Unfair, match="FAIR-02 glyphs: 1 class in both"):
        run_trial(small, tmp_path)
