"""What can be scored is known beforehand, and agrees with the evaluator."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import cli
from harness.data import doctor, scorable
from harness.data.datasets import DatasetError
from harness.data.scope import Scope
from harness.errors import GridError
from harness.grid import Grid
from harness.launch.plan import make_plan
from harness.leaderboard.compose import board_of
from harness.runs.run import Run
from harness.training.scoring import score_test
from harness.training.trial import run_trial
from tests.harness.data.datasets.test_checks import dataset
from tests.harness.pictures import noise, to_image

roles = st.one_of(st.none(), st.just(("query", "gallery")))


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=12), roles=roles, data=st.data())
def test_it_agrees_with_the_evaluator(labels, roles, data):
    """A K is answerable exactly where the evaluator takes it, and a problem is what it refuses."""
    labels = np.array(labels)
    if roles is not None:
        roles = np.array(data.draw(st.lists(st.sampled_from(roles), min_size=len(labels), max_size=len(labels))))
        if len(set(roles)) < 2:
            return
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    scope = Scope.of(labels, roles)

    def takes(ks):
        try:
            found = score_test(embeddings, labels, ids, roles, ks)
        except ValueError:
            return False
        assert (len(found.queries), found.excluded) == (scope.answered, scope.queries - scope.answered)
        assert "MAP@R" in found.values
        return True

    assert takes(()) == (scope.problem("test") is None)
    ks = range(1, len(labels) + 1)
    assert scope.answerable(ks) == tuple(k for k in ks if takes((k,)))


def test_hand_counted_scopes():
    assert Scope.of(np.array([0, 0, 1, 1, 2])) == Scope(queries=5, answered=4, candidates=4)
    assert Scope.of(np.array([0, 1, 2])) == Scope(queries=3, answered=0, candidates=0)
    roles = np.array(["query", "gallery", "query", "gallery", "gallery"])
    assert Scope.of(np.array([0, 0, 1, 2, 2]), roles) == Scope(queries=2, answered=1, candidates=3, roles=True)
    assert Scope.of(np.array([5, 5]), np.array(["query", "gallery"])).answerable((1, 2)) == (1,)


SPLIT = [("a", "train")] * 2 + [("b", "train")] * 2 + [("v", "validation"), ("w", "validation")]
TEST = [(c, "test") for c in "ccdd"]


def test_omitted_ks_and_rejected_splits():
    toy = dataset([*SPLIT, *TEST])
    asked = scorable.scores(toy, toy.split)
    assert asked.problems == ("toy: every class in validation has one image, so nothing can be retrieved",)
    assert asked.ks["test"] == (1, 2)
    assert asked.notes == {"test": "toy: R@4, R@8 of test left out: a query has 3 candidates"}
    asked = scorable.scores(toy, np.where(toy.split == "validation", "train", toy.split), ks=(5, 6))
    assert asked.problems == ("toy: none of ks = [5, 6] can be answered in test: a query has 3 candidates",)
    assert scorable.scores(toy, np.where(toy.split == "validation", "train", toy.split), test=False).notes == {}
    lone = dataset([("a", "train"), ("b", "train"), *[(c, "validation") for c in "vvww"], *TEST])
    (problem,) = scorable.scores(lone, lone.split, ks=(1,)).problems
    assert problem == "toy: every class in train has one image, so nothing can be retrieved"


GRID = """
name: g
datasets: [folder]
backbones: [test_resnet]
losses: [contrastive]
levels: [baseline]
floors: []
seeds: [0]
model: {dim: 8}
images: {side_px: 32}
training: {epochs: 1, batch_size: 8, examples_per_class: 2, lr: 1.0e-3, schedule: constant}
"""


@pytest.fixture
def planned(tmp_path):
    """The plan of a grid over a folder with classes of the given sizes in train and test."""

    def planned(train, test, *overrides):
        for split, sizes in (("train", train), ("test", test)):
            for number, size in enumerate(sizes):
                folder = tmp_path / "data" / split / f"{split}{number:02d}"
                folder.mkdir(parents=True, exist_ok=True)
                for i, pixels in enumerate(noise(size, 40, seed=number)):
                    to_image(pixels).save(folder / f"{i}.png")
        (tmp_path / "g.yaml").write_text(GRID)
        return make_plan(Grid.load(tmp_path / "g.yaml", overrides), tmp_path / "data", tmp_path / "cache")

    return planned


def test_a_k_beyond_the_gallery_is_omitted_with_a_note(planned, tmp_path):
    plan = planned([3] * 10, [2] * 4)
    message = "folder: R@8 of test left out: a query has 7 candidates"
    unseen = "folder: R@8 of validation left out: a query has 5 candidates"
    assert plan.notes == (unseen, message)
    found = doctor.examine("folder", tmp_path / "data", tmp_path / "cache")
    assert [(finding.severity, finding.sentence) for finding in found.findings] == [("W", message)]
    assert found.sound
    record = run_trial(plan.trials[0], tmp_path / "run", tmp_path / "data", tmp_path / "cache")
    assert list(record.test) == ["R@1", "R@2", "R@4", "MAP@R", "R-Precision"]
    assert [name for name in record.validation if name.startswith("R@")] == ["R@1", "R@2", "R@4"]
    assert record.notes[:2] == (unseen, message)


def test_the_ks_of_the_grid_are_scored(planned, tmp_path, capsys):
    plan = planned([3] * 10, [2] * 4, "ks=[2, 5]")
    assert plan.notes == ()
    record = run_trial(plan.trials[0], tmp_path / "run", tmp_path / "data", tmp_path / "cache")
    assert list(record.test) == ["R@2", "R@5", "MAP@R", "R-Precision"]
    assert [name for name in record.curve[-1].validation if name.startswith("R@")] == ["R@2", "R@5"]
    (block,) = board_of([record]).blocks
    assert block.shown == ("MAP@R", "R-Precision")
    assert cli.main(["report", str(tmp_path / "run")]) == cli.OK
    assert cli.main(["audit", str(tmp_path / "run")]) == cli.OK
    assert cli.main(["verify", str(tmp_path / "run")]) == cli.OK
    capsys.readouterr()


@pytest.mark.parametrize(
    ("sizes", "overrides", "message"),
    [
        ([3] * 10, ["ks=[9, 10]"], "folder: none of ks = [9, 10] can be answered in test: a query has 7 candidates"),
        ([1] * 9 + [2], ["folds=5"], "fold 1 of 5: folder: every class in validation has one image"),
    ],
)
def test_splits_without_a_score_are_rejected_by_the_plan(planned, sizes, overrides, message):
    with pytest.raises(GridError) as error:
        planned(sizes, [2] * 4, *overrides)
    assert message in str(error.value)


def test_validation_classes_of_one_image_are_rejected_everywhere(planned, tmp_path, make_trial):
    plan = planned([3] * 10, [2] * 4)
    folder = tmp_path / "data" / "train"
    for name in ("train04", "train08"):  # those that the fair protocol holds out
        for path in sorted((folder / name).iterdir())[1:]:
            path.unlink()
    message = (
        "folder: every class in validation has one image, so nothing can be retrieved; the validation classes are "
        "chosen by class name (train04, train08): add a second image to some of them, remove them, or define a "
        "validation split in a manifest"
    )
    found = doctor.examine("folder", tmp_path / "data", tmp_path / "other")
    assert (found.findings[0].severity, found.findings[0].sentence) == ("E", message)
    with pytest.raises(GridError, match="every class in validation has one image") as error:
        make_plan(Grid.load(tmp_path / "g.yaml"), tmp_path / "data", tmp_path / "other")
    assert message in str(error.value)
    with pytest.raises(DatasetError) as error:
        run_trial(plan.trials[0], tmp_path / "run", tmp_path / "data", tmp_path / "other")
    assert str(error.value) == message
    assert Run(tmp_path / "run").records() == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("1,10", "ks: '1,10' is not a list of K for R@K, such as [1, 10]"),
        ("5", "ks: 5 is not a list of K for R@K, such as [1, 10]"),
        ("[]", "ks: [] is not a list of K for R@K, such as [1, 10]"),
        ("[0, 1]", "ks: 0 in [0, 1] is not a whole number of at least 1"),
        ("[1, 2.5]", "ks: 2.5 in [1, 2.5] is not a whole number of at least 1"),
        ("[true]", "ks: True in [True] is not a whole number of at least 1"),
        ("[10, 1, 1]", "ks: [10, 1, 1] is not in increasing order, each K once: write [1, 10]"),
    ],
)
def test_wrong_ks_are_rejected_with_a_reason(written, message):
    with pytest.raises(GridError) as error:
        Grid.load("quick", [f"ks={written}"])
    assert error.value.problems == (message,)


def test_a_trial_without_ks_keeps_its_name(make_trial):
    trial = make_trial()
    assert trial.digest == "05b422a5b02fd9f827024874482e9de14ba36a124cdbc3cd2b874dffdfe74829"
    asked = trial.model_copy(update={"ks": (1, 10)})
    assert asked.digest != trial.digest
    assert (trial.shared["ks"], asked.shared["ks"]) == (None, (1, 10))
    assert asked == type(asked).model_validate_json(asked.model_dump_json())
