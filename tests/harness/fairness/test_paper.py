"""The published benchmarks under their published grids, at reduced size: from users' folders to records."""

from importlib import import_module

import pytest

from harness.config import Backbone
from harness.grid import Grid
from harness.launch.plan import make_plan
from harness.leaderboard import compose
from harness.runs.run import Run
from harness.training.pictures import Sources
from harness.training.trial import steps

SMALL = [
    *("epochs=2", "warmup_epochs=1", "batch_size=8", "examples_per_class=4", "precision=float32", "threads=1"),
    *("dim=16", "side_px=32", "cache_side_px=40", "floors=[]", "seeds=[0]"),
]


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop"])
def test_a_published_grid_runs_on_a_small_copy(name, tmp_path):
    grid = Grid.load(f"paper-{name}", SMALL, {"losses": ["contrastive"], "levels": ["baseline", "input"]})
    (dataset,) = grid.datasets
    (tmp_path / "data").mkdir()
    data = import_module(f"tests.harness.data.datasets.sources.{dataset.name}").write(tmp_path / "data")
    dataset = dataset.model_copy(update={"options": {"allow_nonstandard": True}})
    grid = grid.model_copy(update={"datasets": (dataset,), "backbones": (Backbone(name="test_resnet"),)})
    run = Run(tmp_path / "run")
    for trial in make_plan(grid, data).trials:
        for _ in steps(trial, Sources(run.folder, data)):
            continue
    records = run.records()
    assert [record.level for record in records] == ["input", "baseline"]
    for record in records:
        assert (record.protocol["name"], record.selected_epoch) == ("paper", 2)
        assert set(record.data.classes) == {"train", "test"}
        assert record.best_test_epoch is not None
        assert record.best_test_epoch["R@1"] >= record.test["R@1"] > 0
    (block,) = compose.board_of(records).blocks
    assert block.dataset == dataset.name


def test_the_published_settings():
    """Table of published settings: epochs, lr, step, gamma, warm-up, BatchNorm; both arms of a pair share them."""
    published = {
        ("cub200", "contrastive"): (60, 1e-4, 10, 0.1, 5, "frozen"),
        ("cars196", "multi_similarity"): (60, 1e-4, 5, 0.5, 5, "frozen"),
        ("sop", "contrastive"): (60, 3e-5, 10, 0.25, 1, "train"),
        ("inshop", "contrastive"): (60, 3e-5, 5, 0.25, 1, "train"),
        ("sop", "proxy_anchor"): (60, 6e-4, 20, 0.25, 1, "train"),
    }
    trials = Grid.load("paper-all").trials()
    assert {trial.dataset.name for trial in trials} == {"cub200", "cars196", "sop", "inshop"}
    for (dataset, loss), settings in published.items():
        found = {
            (t.epochs, t.lr, t.step_epochs, t.gamma, t.warmup_epochs, trial.model.norm)
            for trial in trials
            if (trial.dataset.name, trial.arm.loss) == (dataset, loss)
            for t in (trial.training,)
        }
        assert found == {settings}
