"""A random grid file runs as written, or is rejected with a message in the words of the file."""

import re
import tempfile
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.config import LEVELS, SHARED_BY_A_LOSS, Arm
from harness.data.cache import default_folder
from harness.errors import UserError
from harness.grid import Grid
from harness.launch.plan import make_plan
from harness.training.loop import Diverged
from harness.training.pictures import Sources, prepare_images
from harness.training.trial import run_trial
from tests.harness import random_grids, random_inputs

CACHE = default_folder()
INTERNAL = re.compile(
    r"Input should|[Vv]alidation error|pydantic|type=|input_value|Errno|Traceback|NoneType|<class '|<function "
    r"|object at|mappingproxy|\btuple\b|\bdict\b|\bValueError|\bTypeError|\bKeyError|has no attribute|Keys should"
)


def check_message(error):
    """Return the message of an error, after checking that it can be printed and names no internals."""
    text = str(error)
    text.encode("utf-8", "strict")
    assert not INTERNAL.search(text), text
    return text


def loaded(data, overrides=(), only=None):
    """Return the grid of a file with this content; None if it is rejected with a message."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "grid.yaml"
        path.write_bytes(data)
        try:
            return Grid.load(path, overrides, only)
        except UserError as error:
            check_message(error)
            return None


@given(random_grids.faulty_files(), random_grids.overrides(), random_grids.selections())
@random_inputs.examples(100)
def test_a_file_is_a_grid_or_is_rejected_with_a_message(data, overrides, only):
    grid = loaded(data, overrides, only)
    if grid is None:
        return
    trials = grid.trials()
    assert len({trial.id for trial in trials}) == len(trials)
    assert Grid.model_validate(grid.model_dump(mode="json")).trials() == trials


@given(random_grids.contents())
@random_inputs.examples(60)
def test_every_setting_of_a_file_is_in_its_trials(content):
    grid = loaded(yaml.safe_dump(content).encode())
    if grid is None:
        return
    trials = grid.trials()
    (backbone,), training, scale = (
        content["backbones"],
        content["training"],
        content["backbones"][0].get("lr_scale", 1),
    )
    for trial in trials:
        expected = {
            key: content[key]
            for key in ("model", "images", "protocol", "folds", "ks", "keep", "analysis")
            if key in content
        }
        assert contains(trial, expected)
        assert contains(trial.backbone, {key: backbone[key] for key in backbone.keys() - {"stage", "lr_scale"}})
        assert contains(trial.training, {key: training[key] for key in training.keys() - {*SHARED_BY_A_LOSS}})
        own = next((loss for loss in map(named, content.get("losses", ())) if loss["name"] == trial.arm.loss), {})
        for key in SHARED_BY_A_LOSS:
            if (value := own.get(key, training.get(key))) is not None:
                wanted = pytest.approx(value * scale, rel=1e-9) if key == "lr" else value
                assert getattr(trial.training, key) == wanted
    if {trial.arm.loss for trial in trials} - {"pixels"}:
        assert {trial.seed for trial in trials} == {*content.get("seeds", (0, 1, 2))}
    labels = {trial.arm.label for trial in trials}
    assert labels >= {Arm.parse(arm).label for arm in content.get("arms", ())}
    assert labels >= {*content.get("floors", ())}
    for loss, level in product(map(named, content.get("losses", ())), map(levelled, content.get("levels", LEVELS))):
        arms = [t.arm for t in trials if t.arm.loss == loss["name"] and t.arm.at == level["at"]]
        arms = [arm for arm in arms if contains(arm, {"options": loss.get("options", {})})]
        if level["at"] != "baseline":
            expected = {**content.get("metrix", {}), **level}
            if level["at"] == "feature":
                expected["stage"] = level.get("stage") or backbone.get("stage")
            arms = [arm for arm in arms if contains(arm.metrix, expected)]
        assert arms, (loss, level)


def named(choice):
    return {"name": choice} if isinstance(choice, str) else choice


def levelled(level):
    return {"at": level} if isinstance(level, str) else level


def contains(value, expected):
    """Return whether a value of the grid contains everything expected, at any depth."""
    if isinstance(expected, dict):
        get = value.get if isinstance(value, dict) else lambda key: getattr(value, key)
        return all(contains(get(key), part) for key, part in expected.items())
    return (list(value) if isinstance(value, tuple) else value) == expected


@given(
    random_grids.contents().map(lambda content: {**content, "datasets": ["folder"]}),
    random_inputs.trees(1),
    st.data(),
)
@random_inputs.examples(8)
def test_what_the_plan_of_a_grid_accepts_finishes(content, tree, data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        random_inputs.write_tree(folder, tree)
        grid = loaded(yaml.safe_dump(content).encode())
        if grid is None:
            return
        try:
            plan = make_plan(grid, folder, CACHE)
            prepare_images(plan.trials, Sources(place, folder, CACHE), lambda sentence: None)
        except UserError as error:
            check_message(error)
            return
        if not plan.trials or grid.protocol == "tuned":
            return
        trial = data.draw(st.sampled_from(plan.trials))
        try:
            record = run_trial(trial, Path(place) / "run", folder, CACHE, "cpu")
        except Diverged:
            assert max(trial.training.lr, trial.training.weight_decay) >= 1
            return
        assert record.trial == trial
        assert set(record.data.images) == {"train", "test"} | ({"validation"} if grid.protocol == "fair" else set())
