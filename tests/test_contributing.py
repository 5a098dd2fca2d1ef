"""The examples of CONTRIBUTING.md: each is one file, and everything finds it."""

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import baselines
import harness
from harness import registry, reports
from harness.data import datasets
from harness.evaluation import metrics
from harness.fairness import rules
from harness.leaderboard.compose import board_of
from metrix import Metrix, rivals
from tests.test_layers import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {
    Path(path): code for path, code in re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.M | re.S)
}

GRID = """
name: example
datasets: [stripes]
backbones: [test_resnet]
losses: [mean_similarity]
levels: [push]
floors: []
seeds: [0]
model: {dim: 16}
images: {side_px: 32, crop_scale: [0.6, 1.0]}
training: {epochs: 1, batch_size: 20, examples_per_class: 5, lr: 1e-3, schedule: constant}
"""


@pytest.fixture(autouse=True)
def added(tmp_path, monkeypatch):
    """Put the files of the page where their packages look for entries, until the test ends."""
    rules.all_rules()  # registers the rules that exist, before the register is replaced by a copy
    monkeypatch.setattr(rules, "_checks", dict(rules._checks))
    for path, code in EXAMPLES.items():
        package = import_module(".".join(path.parent.parts))
        folder = tmp_path / path.parent
        folder.mkdir(parents=True)
        (folder / path.name).write_text(code, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{path.stem}", raising=False)
    registry.levels.cache_clear()
    yield
    registry.levels.cache_clear()
    for path in EXAMPLES:
        sys.modules.pop(".".join(path.with_suffix("").parts), None)


def test_the_page_shows_one_file_of_each_kind():
    assert {str(path.parent) for path in EXAMPLES} == {
        "baselines",
        "metrix/rivals",
        "harness/data/datasets",
        "harness/evaluation/metrics",
        "harness/reports/formats",
        "harness/fairness/rules",
    }


def test_the_loss_has_a_mixed_form():
    loss = baselines.create("mean_similarity")
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    assert loss(embeddings, labels).item() == 0.0
    assert loss(torch.eye(2).repeat_interleave(2, 0), labels).item() == -1.0
    assert set(Metrix(loss).terms(embeddings, labels)) == {"clean", "mixed"}


def test_the_level_takes_its_loss():
    loss = baselines.create("mean_similarity")
    level = rivals.create("push", loss, by=0.25)
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    assert level(embeddings, labels).item() == 0.25
    assert level.eval()(embeddings, labels).item() == 0.0
    assert rivals.refusal("push", "norm_softmax") == "push does not take norm_softmax: it has no negative examples"


def test_the_metric_is_a_column():
    assert "reciprocal_rank" in metrics.names()
    found = harness.evaluate(np.eye(3)[[0, 0, 1, 1, 2, 2]] + 0.1, [0, 0, 1, 1, 2, 2], ks=(1,))
    assert found.values["MRR"] == 1.0


def test_a_trial_of_all_of_them(tmp_path):
    """Train on the dataset with the loss, score with the metric, apply the rule and write the report."""
    assert len(datasets.load("stripes", images=5)) == 120
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    (trial,) = harness.Grid.load(tmp_path / "grid.yaml").trials()
    record = harness.run_trial(trial, tmp_path)
    assert (record.arm, record.effective) == ("mean_similarity+push", {"push.by": 0.1})
    assert 0 < record.test["MRR"] <= 1
    assert "FAIR-90" in {finding.rule for finding in rules.over_records([record])}
    (path,) = reports.write_all(board_of([record]), tmp_path, ["winners"])
    assert path.read_text(encoding="utf-8") == "stripes/test_resnet\n"
