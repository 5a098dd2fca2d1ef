"""What a plan remembers of the networks it looked at."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from harness.data.datasets import PassedOver
from harness.errors import GridError
from harness.grid import Grid
from harness.launch.plan import make_plan, relative_costs
from harness.runs.run import Run
from harness.training.trial import run_trial
from tests.harness.data.datasets.sources import folder

ROOT = Path(__file__).parents[3]
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
from harness.grid import Grid
from harness.launch.plan import estimate, make_plan
plan = make_plan(Grid.load("quick", json.loads(sys.argv[1])), cache=Path(sys.argv[2]))
seconds = estimate(plan, cache=Path(sys.argv[2]))
heavy = {"timm", "torchvision", "ray", "pandas", "matplotlib", "optuna"}
print(json.dumps([sorted(seconds.items()), sorted(heavy & sys.modules.keys())]))
"""


def test_a_network_is_checked_once(drawn):
    """The second process plans and estimates the same without importing timm."""

    def plan() -> list:
        words = [sys.executable, "-c", AGAIN, json.dumps(SMALL), str(drawn)]
        return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout)

    (first, imported), (second, imported_again) = plan(), plan()
    assert imported == ["timm", "torchvision"]
    assert imported_again == []
    assert second == first
    assert len(first) > 4


def test_remembered_costs_equal_counted_costs(drawn, tmp_path):
    """Remembered or not; whatever the cache says of other settings."""
    plan = make_plan(Grid.load("quick", SMALL), cache=drawn)
    counted = relative_costs(plan.trials, cache=drawn)
    assert relative_costs(plan.trials, cache=drawn) == counted
    another = shutil.copytree(drawn, tmp_path / "another", ignore=shutil.ignore_patterns("remembered"))
    assert relative_costs(plan.trials, cache=another) == counted
    larger = make_plan(Grid.load("quick", [*SMALL, "side_px=64"]), cache=drawn)
    ratio = max(relative_costs(larger.trials, cache=drawn).values()) / max(counted.values())
    assert ratio == pytest.approx(4, rel=0.01)  # twice the side


def test_a_wrong_network_is_not_remembered_as_sound(drawn):
    for _ in range(2):
        with pytest.raises(GridError, match=r"backbones: .*no stage 'layer9'"):
            make_plan(Grid.load("quick", [*SMALL, "backbones=[{name: test_resnet, stage: layer9}]"]), cache=drawn)


def test_replaced_weights_are_checked_again(drawn, tmp_path, monkeypatch):
    from harness.launch import plan

    looked, weights = [], tmp_path / "weights.safetensors"

    def look(*network):
        looked.append(network)
        return {"problems": [], "weights": str(weights), "stamp": plan._stamp(weights), "unwrapped": ""}

    monkeypatch.setattr(plan, "_check_network", look)
    changes = [*SMALL, f"backbones=[{{name: test_resnet, pretrained: {weights}}}]"]
    for content, looks in ((b"one", 1), (b"one", 1), (b"two", 2)):
        if not weights.exists() or weights.read_bytes() != content:
            weights.write_bytes(content)
        plan._network_problems([t for t in Grid.load("quick", changes).trials() if t.arm.at == "baseline"], drawn)
        assert len(looked) == looks, content


def test_missing_weights_are_reported(drawn, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    changes = [*SMALL, f"backbones=[{{name: test_resnet, stage: layer3, pretrained: {weights}}}]"]
    make_plan(Grid.load("quick", changes), cache=drawn)
    os.unlink(weights)
    with pytest.raises(GridError, match=r"there is no weights file '.*weights\.pth'"):
        make_plan(Grid.load("quick", changes), cache=drawn)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            "[{name: multi_similarity, options: {beta: -1}}]",
            "losses: multi_similarity[beta=-1]: beta = -1 is out of range: it must be a number in (0.0, ∞)",
        ),
        (
            "[{name: triplet, options: {mining: soft}}]",
            "losses: triplet[mining=soft]: mining = 'soft' is unknown; it must be one of 'all', 'semihard', 'hard'",
        ),
        (
            "[{name: soft_triple, options: {centres: 0}}]",
            "losses: soft_triple[centres=0]: centres = 0 is out of range: it must be a whole number of at least 1",
        ),
        (
            "[{name: contrastive, options: {margin: wide}}]",
            "losses: contrastive[margin=wide]: margin = 'wide' is out of range: it must be a number in [-1.0, 1.0]",
        ),
    ],
)
def test_options_out_of_range_are_refused(drawn, losses, message):
    with pytest.raises(GridError) as error:
        make_plan(Grid.load("quick", [*SMALL, f"losses={losses}", "levels=[baseline]"]), cache=drawn)
    assert error.value.problems == (message,)


def test_the_plan_opens_a_file_of_weights_and_opens_it_again_when_it_is_replaced(drawn, tmp_path):
    """What is unwrapped is noted; a file of the same name that holds something else is found out."""
    weights, state = tmp_path / "weights.ckpt", timm.create_model("test_resnet").state_dict()
    changes = [*SMALL, f"backbones=[{{name: test_resnet, pretrained: {weights}}}]"]
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, weights)
    for _ in range(2):
        plan = make_plan(Grid.load("quick", changes), cache=drawn)
        assert plan.notes == ("weights.ckpt: read from 'state_dict', prefix 'model.' stripped",)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(GridError) as error:
        make_plan(Grid.load("quick", changes), cache=drawn)
    assert error.value.problems == (
        f"backbones: the weights file {weights} is a git-lfs pointer, not the weights themselves: fetch them with "
        "git lfs pull",
    )


OWN = [
    *("datasets=[folder]", "losses=[contrastive]", "levels=[baseline]", "floors=[pixels]", "seeds=[0]"),
    *("batch_size=4", "examples_per_class=2", "compute_matched=false"),
]


def test_skipped_files_are_in_the_plan_and_in_the_record(tmp_path):
    data = folder.write(tmp_path / "data")
    for path in sorted(data.glob("*/?.png")):
        folder.image(path.with_name(f"more-{path.name}"))
    changes = [*OWN, "backbones=[test_resnet]"]
    plan = make_plan(Grid.load("quick", changes), data, tmp_path / "cache")
    assert plan.notes == (
        "folder: ignored 8 files and folders of an operating system or a storage device (ant/._1.png, bee/._1.png, "
        "cat/._1.png, dog/._1.png, elk/._1.png and 3 more)",
        "folder: ignored 8 files that are not images (ant/notes.txt, bee/notes.txt, cat/notes.txt, "
        "dog/notes.txt, elk/notes.txt and 3 more)",
    )
    pixels = next(trial for trial in plan.trials if trial.arm.loss == "pixels")
    run_trial(pixels, tmp_path / "run", data, tmp_path / "cache")
    (record,) = Run(tmp_path / "run").records()
    (one, other) = record.data.passed_over
    assert (one.count, other.count) == (8, 8)
    names = tuple(f"{name}/notes.txt" for name in ("ant", "bee", "cat", "dog", "elk"))
    assert other == PassedOver("files that are not images", 8, names)


def test_a_file_name_that_is_not_utf_8_is_refused_before_work(tmp_path):
    data = folder.write(tmp_path / "data")
    os.rename(data / "ant" / "1.png", os.fsencode(data / "ant") + b"/caf\xe9.png")
    with pytest.raises(GridError, match=r"1 files have names that are not UTF-8 \(ant/caf\\xe9.png\)"):
        make_plan(Grid.load("quick", [*OWN, "backbones=[test_resnet]"]), data, tmp_path / "cache")


def test_an_arm_that_would_train_for_no_epoch_is_refused(drawn):
    grid = Grid.load("quick", [*SMALL, "epochs=3", "arms=[triplet@0.1x, triplet@0.2x]"])
    with pytest.raises(GridError) as caught:
        make_plan(grid, cache=drawn)
    assert caught.value.problems == ("arms: triplet@0.1x: 0.1 × 3 epochs are less than one",)


@pytest.fixture
def frozen_plan(weights_of, drawn):
    """Return a function that plans a grid with a frozen network."""

    def plan(*changes, network="test_resnet", stage=None):
        backbone = f"{{name: {network}, pretrained: {weights_of(network)}, stage: {stage or 'null'}}}"
        common = ["model.backbone=frozen", "floors=[]", f"backbones=[{backbone}]", *changes]
        return make_plan(Grid.load("quick", [*SMALL, *common]), cache=drawn)

    return plan


NO_INPUT = (
    "a frozen backbone computes the features of each image once, so there is no mixed image to compute them of: mix "
    "at embedding or feature, or set model.backbone to trained"
)


def test_input_mixing_is_not_applicable_to_a_frozen_backbone(frozen_plan):
    plan = frozen_plan()
    assert plan.refused == (("glyphs", "test_resnet", "contrastive+input", NO_INPUT),)
    assert {t.arm.at for t in plan.trials} == {"baseline", "embedding", "feature", "longer"}
    with pytest.raises(GridError) as error:
        frozen_plan("arms=[contrastive+input]", "losses=[]")
    assert error.value.problems == (f"arms: contrastive+input: {NO_INPUT}",)


def test_a_rival_at_the_input_is_not_applicable_to_a_frozen_backbone(frozen_plan):
    plan = frozen_plan("levels=[i_mix, {at: i_mix, options: {at: embedding}}, mochi]")
    assert plan.refused == (("glyphs", "test_resnet", "contrastive+i_mix", NO_INPUT),)
    assert {t.arm.label for t in plan.trials} == {"contrastive+i_mix[at=embedding]", "contrastive+mochi"}


def test_a_rival_with_more_passes_has_a_baseline_with_as_many(drawn):
    plan = make_plan(Grid.load("quick", [*SMALL, "levels=[baseline, i_mix, mochi]", "floors=[]"]), cache=drawn)
    assert [t.arm.label for t in plan.trials] == [
        "contrastive",
        "contrastive+i_mix",
        "contrastive+mochi",
        "contrastive@2x",
    ]
    costs = relative_costs(plan.trials, cache=drawn)
    alone, i_mix, mochi, longer = (costs[t.id] for t in plan.trials)
    assert mochi == alone
    assert longer > i_mix > 1.8 * alone  # the longer one validates twice as often


def test_a_memory_that_would_never_start_is_refused(drawn):
    with pytest.raises(GridError) as error:
        make_plan(Grid.load("quick", [*SMALL, "levels=[xbm]"]), cache=drawn)
    (problem,) = error.value.problems
    assert problem.startswith("levels: contrastive+xbm on glyphs: xbm would never start: warmup_steps 1000 of ")


def test_states_that_do_not_fit_in_memory_are_refused(drawn):
    level = "{at: memvir, num_steps: 100000, gap: 1000, warmup_steps: 0}"
    changes = ["losses=[norm_softmax]", f"levels=[{level}]", "epochs=100000"]
    with pytest.raises(GridError) as error:
        make_plan(Grid.load("quick", [*SMALL, *changes]), cache=drawn)
    (problem,) = error.value.problems
    expected = r"levels: norm_softmax\+memvir\[.*\] keeps 999\.4 GB of earlier steps in memory; this machine has "
    assert re.match(expected, problem)


def test_a_level_without_a_form_is_not_applicable_or_refused_if_it_is_named(drawn):
    reason = "mochi does not take norm_softmax: it has no negative examples to mix"
    changes = ["losses=[norm_softmax]", "levels=[baseline, mochi]"]
    plan = make_plan(Grid.load("quick", [*SMALL[:3], *changes]), cache=drawn)
    assert plan.refused == (("glyphs", "test_resnet", "norm_softmax+mochi", reason),)
    with pytest.raises(GridError) as error:
        make_plan(Grid.load("quick", [*SMALL, "arms=[norm_softmax+mochi]"]), cache=drawn)
    assert error.value.problems == (f"arms: norm_softmax+mochi: {reason}",)


def test_a_stage_of_a_frozen_backbone_is_refused_with_the_one_there_is(frozen_plan):
    reason = "a frozen backbone has one stage to mix at, 'pooled', not 'layer3'; remove the stage"
    plan = frozen_plan(stage="layer3")
    assert ("glyphs", "test_resnet", "contrastive+feature[stage=layer3]", reason) in plan.refused
    with pytest.raises(GridError) as error:
        frozen_plan("arms=['contrastive+feature[stage=layer3]']", "losses=[]")
    assert error.value.problems == (f"arms: contrastive+feature[stage=layer3]: {reason}",)


def test_the_stage_of_a_frozen_backbone_may_be_named(frozen_plan):
    """It costs as much as the default, which is that stage."""
    plan = frozen_plan("arms=['contrastive+feature[stage=pooled]', contrastive+feature]", "losses=[]")
    costs = relative_costs([t for t in plan.trials if t.arm.at == "feature"])
    assert len(costs) == 2
    assert len(set(costs.values())) == 1


def test_a_frozen_trial_costs_what_its_head_costs(frozen_plan):
    """96 · dim multiplications and additions a row, whatever the size of the images."""
    alone = ("levels=[baseline]", "compute_matched=false")
    small, large = (relative_costs(frozen_plan(*alone, f"side_px={side}").trials).values() for side in (32, 64))
    assert list(small) == list(large)
    (wide,) = relative_costs(frozen_plan(*alone, "dim=1024").trials).values()
    assert wide / next(iter(small)) == pytest.approx(1024 / Grid.load("quick").model.dim)


def test_the_features_are_no_arm_of_a_random_network(drawn):
    with pytest.raises(GridError) as error:
        make_plan(Grid.load("quick", [*SMALL, "arms=[features]"]), cache=drawn)
    assert error.value.problems == (
        "arms: features: test_resnet has no pretrained weights, whose features could be compared; in backbones, set "
        "pretrained to true or to a file",
    )
