"""What a plan remembers of the networks it looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import Grid, GridError
from harness.plan import make_plan, relative_costs

ROOT = Path(__file__).parents[2]
SMALL = [
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


def test_networks_are_looked_at_once(tmp_path):
    """The second process plans the same without importing timm, unless what was remembered is gone."""

    def plan() -> list:
        words = [sys.executable, "-c", AGAIN, json.dumps(SMALL), str(tmp_path)]
        return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    (first, had_timm), (second, has_timm) = plan(), plan()
    assert (had_timm, has_timm) == (True, False)
    assert second == first
    assert len(first) > 4
    for path in (tmp_path / "remembered").iterdir():
        path.unlink()
    assert plan() == [first, True]


def test_costs_are_those_that_are_counted(tmp_path):
    """Remembered or not; whatever the cache says of other settings."""
    plan = make_plan(Grid.load("quick", SMALL), cache=tmp_path)
    counted = relative_costs(plan.trials, cache=tmp_path)
    assert relative_costs(plan.trials, cache=tmp_path) == counted
    assert relative_costs(plan.trials, cache=tmp_path / "another") == counted
    larger = make_plan(Grid.load("quick", [*SMALL, "side_px=64"]), cache=tmp_path)
    ratio = max(relative_costs(larger.trials, cache=tmp_path).values()) / max(counted.values())
    assert ratio == pytest.approx(4, rel=0.01)  # twice the side


def test_a_wrong_network_is_wrong_again(tmp_path):
    for _ in range(2):
        with pytest.raises(GridError, match=r"backbones: .*no stage 'layer9'"):
            make_plan(Grid.load("quick", ["backbones=[{name: test_resnet, stage: layer9}]"]), cache=tmp_path)


def test_weights_that_went_away_are_missed(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    changes = [f"backbones=[{{name: test_resnet, stage: layer3, pretrained: {weights}}}]", *SMALL[1:]]
    make_plan(Grid.load("quick", changes), cache=tmp_path)
    os.unlink(weights)
    with pytest.raises(GridError, match=r"there is no weights file '.*weights\.safetensors'"):
        make_plan(Grid.load("quick", changes), cache=tmp_path)
