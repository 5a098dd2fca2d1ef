"""What a plan remembers of the networks it looked at."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import Grid, GridError
from harness.plan import make_plan, relative_costs

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


def test_weights_that_were_replaced_are_looked_at_again(drawn, tmp_path, monkeypatch):
    from harness import plan

    looked, weights = [], tmp_path / "weights.safetensors"
    monkeypatch.setattr(
        plan, "_looked_at", lambda *network: looked.append(network) or {"problems": [], "weights": str(weights)}
    )
    changes = [*SMALL, f"backbones=[{{name: test_resnet, pretrained: {weights}}}]"]
    for content, looks in ((b"one", 1), (b"one", 1), (b"two", 2)):
        if not weights.exists() or weights.read_bytes() != content:
            weights.write_bytes(content)
        plan._network_problems([t for t in Grid.load("quick", changes).trials() if t.arm.at == "baseline"], drawn)
        assert len(looked) == looks, content


def test_weights_that_went_away_are_missed(drawn, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    changes = [*SMALL, f"backbones=[{{name: test_resnet, stage: layer3, pretrained: {weights}}}]"]
    make_plan(Grid.load("quick", changes), cache=drawn)
    os.unlink(weights)
    with pytest.raises(GridError, match=r"there is no weights file '.*weights\.safetensors'"):
        make_plan(Grid.load("quick", changes), cache=drawn)
