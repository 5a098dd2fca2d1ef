"""A level is a file: one that is dropped into the folder is found by all that follows, from the grid to the page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas

ROOT = Path(__file__).parents[3]
LEVEL = '''"""Push: every negative counts as if it were a little nearer."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.form import Batch, Loss, within
from metrix.rivals._form import Rival


class Push(Rival):
    """Push; by ≥ 0."""

    title = "Push!"
    paper = "Nobody, 2020"
    year = 2020
    refuses: ClassVar = {"classes": "has no pair to push", "proxies": "has no pair to push"}
    search_space: ClassVar = {"by": {"low": 0.01, "high": 0.5, "log": True}}
    counts: ClassVar = ("pushed",)

    def __init__(self, loss: Loss, generator: torch.Generator | None = None, by: float = 0.1):
        super().__init__(loss, generator)
        self.by = within("by", by, 0.0)

    def total(self, batch: Batch, drawn: Any) -> Tensor:
        negative = self.loss.sides(batch)[1]
        self.count(negative.sum())
        similarities = (batch.similarities + self.by * negative).clamp(-1, 1)
        return self.loss.clean(replace(batch, similarities=similarities, sides=None, log_sides=None))

    def warnings(self) -> tuple[str, ...]:
        return ("it pushed 90 negatives a step",) if self.means().get("pushed", 0) > 90 else ()
'''
GRID = """name: dropped
datasets: [{name: glyphs, options: {classes: 24}}]
backbones: [test_resnet]
losses: [contrastive, norm_softmax]
levels: [baseline, push, {at: push, by: 0.25}]
arms: ["contrastive+embedding"]
floors: []
seeds: [0]
model: {dim: 32}
images: {side_px: 32}
training: {epochs: 1, batch_size: 20, examples_per_class: 4}
"""


def test_a_level_in_the_folder_is_in_every_report(tmp_path):
    for package in ("baselines", "metrix", "harness"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "metrix" / "rivals" / "push.py").write_text(LEVEL)
    (tmp_path / "grid.yaml").write_text(GRID)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "harness.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "Push: every negative counts as if it were a little nearer" in " ".join(
        run("list", "levels", "push").split()
    )
    printed = run("run", "grid.yaml", "--out", "runs")
    assert "norm_softmax+push: n/a, push does not take norm_softmax: it has no pair to push" in " ".join(
        printed.split()
    )
    folder = tmp_path / "runs"
    board = pandas.read_csv(folder / "leaderboard.csv").drop_duplicates("arm").set_index("arm")
    assert list(board.loc[board["loss"] == "contrastive"].index) == [
        *("contrastive", "contrastive+embedding", "contrastive+push", "contrastive+push[by=0.25]"),
    ]
    assert board.loc["contrastive+push", ["level", "baseline", "state"]].tolist() == ["push", "contrastive", "ok"]
    assert "it pushed 90 negatives a step" in board.loc["contrastive+push", "findings"]
    scores = pandas.read_csv(folder / "scores.csv").drop_duplicates("arm").set_index("arm")
    assert scores["rival.by"].dropna().to_dict() == {"contrastive+push": 0.1, "contrastive+push[by=0.25]": 0.25}
    latex = (folder / "leaderboard.tex").read_text()
    assert r"+ Push! [by=0.25]" in latex
    assert "Ablation of Push!" in latex
    page = (folder / "leaderboard.html").read_text()
    assert re.search(r'"push":\["var\(--level-2\)","[a-z-]+","[0-9 ]+"\]', page)
    assert re.search(r"--level-2: #[0-9A-F]{6};", page)
    assert "it pushed 90 negatives a step (contrastive+push, contrastive+push[by=0.25])" in printed.replace("\n", "")
