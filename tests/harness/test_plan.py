"""What a plan remembers of the networks it looked at."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import Grid, GridError
from harness.datasets import PassedOver
from harness.plan import make_plan, relative_costs
from harness.record import Run
from harness.trial import run_trial
from tests.harness.datasets.sources import folder

ROOT = Path(__file__).parents[2]
SMALL = [
    "datasets=[{name: glyphs, options: {classes: 24}}]",
    "batch_size=20",
    "backbones=[{name: test_resnet, stage: layer3}]",
    "losses=[contrastive]",
    "seeds=[0]",
    "compute_matched=true",
]
AGAIN = """
import json, sys
from pathlib import Path
from harness.config import Grid
from harness.plan import make_plan, relative_costs
plan = make_plan(Grid.load("quick", json.loads(sys.argv[1])), cache=Path(sys.argv[2]))
costs = relative_costs(plan.trials, cache=Path(sys.argv[2]))
print(json.dumps([sorted(costs.items()), "timm" in sys.modules]))
"""


def test_networks_are_looked_at_once(drawn):
    """The second process plans the same without importing timm."""

    def plan() -> list:
        words = [sys.executable, "-c", AGAIN, json.dumps(SMALL), str(drawn)]
        return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    (first, had_timm), (second, has_timm) = plan(), plan()
    assert (had_timm, has_timm) == (True, False)
    assert second == first
    assert len(first) > 4


def test_costs_are_those_that_are_counted(drawn, tmp_path):
    """Remembered or not; whatever the cache says of other settings."""
    plan = make_plan(Grid.load("quick", SMALL), cache=drawn)
    counted = relative_costs(plan.trials, cache=drawn)
    assert relative_costs(plan.trials, cache=drawn) == counted
    another = shutil.copytree(drawn, tmp_path / "another", ignore=shutil.ignore_patterns("remembered"))
    assert relative_costs(plan.trials, cache=another) == counted
    larger = make_plan(Grid.load("quick", [*SMALL, "side_px=64"]), cache=drawn)
    ratio = max(relative_costs(larger.trials, cache=drawn).values()) / max(counted.values())
    assert ratio == pytest.approx(4, rel=0.01)  # twice the side


def test_a_wrong_network_is_wrong_again(drawn):
    for _ in range(2):
        with pytest.raises(GridError, match=r"backbones: .*no stage 'layer9'"):
            make_plan(Grid.load("quick", [*SMALL, "backbones=[{name: test_resnet, stage: layer9}]"]), cache=drawn)


def test_weights_that_went_away_are_missed(drawn, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    changes = [*SMALL, f"backbones=[{{name: test_resnet, stage: layer3, pretrained: {weights}}}]"]
    make_plan(Grid.load("quick", changes), cache=drawn)
    os.unlink(weights)
    with pytest.raises(GridError, match=r"there is no weights file '.*weights\.safetensors'"):
        make_plan(Grid.load("quick", changes), cache=drawn)


OWN = [
    *("datasets=[folder]", "losses=[contrastive]", "levels=[baseline]", "floors=[pixels]", "seeds=[0]"),
    *("batch_size=4", "examples_per_class=2", "compute_matched=false"),
]


def test_what_is_passed_over_is_in_the_plan_and_in_the_record(tmp_path):
    data = folder.write(tmp_path / "data")
    for path in sorted(data.glob("*/?.png")):
        folder.image(path.with_name(f"more-{path.name}"))
    changes = [*OWN, "backbones=[test_resnet]"]
    plan = make_plan(Grid.load("quick", changes), data, tmp_path / "cache")
    assert plan.notes == (
        "folder: 8 files and folders of an operating system or a storage box passed over (ant/._1.png, bee/._1.png, "
        "cat/._1.png, dog/._1.png, elk/._1.png and 3 more)",
        "folder: 8 files that are no images passed over (ant/notes.txt, bee/notes.txt, cat/notes.txt, dog/notes.txt, "
        "elk/notes.txt and 3 more)",
    )
    pixels = next(trial for trial in plan.trials if trial.arm.loss == "pixels")
    run_trial(pixels, tmp_path / "run", data, tmp_path / "cache")
    (record,) = Run(tmp_path / "run").records()
    (one, other) = record.data.passed_over
    assert (one.count, other.count) == (8, 8)
    names = tuple(f"{name}/notes.txt" for name in ("ant", "bee", "cat", "dog", "elk"))
    assert other == PassedOver("files that are no images", 8, names)


def test_a_name_that_no_record_can_hold_is_refused_before_work(tmp_path):
    data = folder.write(tmp_path / "data")
    os.rename(data / "ant" / "1.png", os.fsencode(data / "ant") + b"/caf\xe9.png")
    with pytest.raises(GridError, match=r"1 files have names that are not UTF-8 \(ant/caf\\xe9.png\)"):
        make_plan(Grid.load("quick", [*OWN, "backbones=[test_resnet]"]), data, tmp_path / "cache")
