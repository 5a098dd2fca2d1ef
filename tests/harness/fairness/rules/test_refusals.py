"""Grids, data and evaluators that break a rule are refused before anything runs."""

import pytest

import harness
from harness import cli
from harness.config import Choice
from harness.errors import GridError
from harness.grid import Grid
from harness.launch.plan import make_plan
from harness.runs.run import Run
from harness.training import bench
from harness.training.bench import Unfair
from harness.training.trial import run_trial

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


SENTENCE = "FAIR-04 {} = test/R@1. Use val/R@1 or val/MAP@R."


@pytest.mark.parametrize("command", ["run", "plan", "trial"])
def test_a_file_that_selects_on_the_test_is_refused_with_its_other_mistakes(command, tmp_path, capsys):
    grid, out = tmp_path / "tiny.yaml", tmp_path / "run"
    grid.write_text(GRID + "selection: {metric: test/R@1}\n")
    words = [command, str(grid), "--out", str(out), *(["--arm", "contrastive"] if command == "trial" else [])]
    assert cli.main(words) == 2
    text = capsys.readouterr().err
    assert SENTENCE.format("selection.metric") in text
    assert "no setting named 'selection'" in text
    assert not out.exists()


def test_included_grids_are_checked_too(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(GRID + "selection: {metric: test/R@1}\n")
    (tmp_path / "all.yaml").write_text("name: all\ninclude: [tiny.yaml]\n")
    assert cli.main(["plan", str(tmp_path / "all.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "include: tiny.yaml: " + SENTENCE.format("selection.metric") in capsys.readouterr().err


@pytest.fixture
def unfair(load):
    """A grid whose settings are valid, and one of them names the test."""
    return load("about: test/R@1\n")


def test_a_plan_of_an_unfair_grid_is_refused_with_its_other_mistakes(unfair):
    with pytest.raises(GridError) as caught:
        make_plan(unfair.model_copy(update={"arms": ("margin+feature",)}))
    assert caught.value.problems[0] == SENTENCE.format("about")
    assert caught.value.problems[1].startswith("arms: margin+feature: margin has no Metrix form")


def test_an_unfair_grid_does_not_run(unfair, tmp_path):
    with pytest.raises(GridError, match="FAIR-04"):
        harness.run_grid(unfair, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_retry_of_an_unfair_grid_is_refused(unfair, tmp_path, capsys):
    run = Run(tmp_path / "run")
    run.prepare()
    run.remember(unfair, unfair.trials(), [])
    run.fail(unfair.trials()[0], "lost", "its process died", "")
    assert cli.main(["retry", str(tmp_path / "run"), "--failed"]) == 2
    assert SENTENCE.format("about") in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("records/*"))


def test_a_fair_grid_is_planned(load):
    assert len(make_plan(load()).trials) == 3 + 3 + 1


@pytest.fixture
def broken_evaluator(monkeypatch):
    bench.evaluator_faults.cache_clear()
    monkeypatch.setattr(bench, "conformance", lambda evaluate: ["constant embedding scored R@1 = 1.000"])
    yield
    bench.evaluator_faults.cache_clear()


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

    monkeypatch.setattr("harness.training.bench.split_of", careless)
    monkeypatch.setattr("harness.launch.plan.split_of", careless)
    with pytest.raises(GridError, match="datasets: FAIR-02 glyphs: 1 class in both train and validation"):
        make_plan(load())
    small = make_trial().model_copy(update={"dataset": Choice(name="glyphs", options={"classes": 16})})
    with pytest.raises(Unfair, match="FAIR-02 glyphs: 1 class in both"):
        run_trial(small, tmp_path)
