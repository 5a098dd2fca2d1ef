"""What README.md prints works as it is printed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def code(title: str) -> str:
    """The block of Python in a section."""
    return re.search(r"^```python\n(.*?)^```", section(title), re.M | re.S).group(1)


def test_the_training_loop():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    given = {
        "images": images,
        "labels": torch.tensor([0, 0, 1, 1, 2, 2]),
        "model": model,
        "embeddings": model(images),
    }
    exec(code("In your own training loop"), given)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert given["model"].backbone.conv1.weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project with the loss of the README in it, and a function that runs Python there."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("baselines", "metrix", "harness", "tests", "results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs", "cache"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    page = section("Adding a loss")
    (folder / re.search(r"Save it as `(\S+)`", page).group(1)).write_text(code("Adding a loss"))

    def run(*words) -> str:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        words = [sys.executable, "-m", *map(str, words)]
        done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=600)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_the_contract_tests_find_an_added_loss_and_pass(clone):
    words = ("-rA", "-p", "no:cacheprovider", "tests/baselines", "tests/metrix", "-k", "soft_contrastive")
    passed = set(re.findall(r"^PASSED \S+::(\w+)\[soft_contrastive", clone("pytest", *words), re.M))
    assert passed >= {
        "test_describes_itself",
        "test_gradient_equals_finite_differences",
        "test_autocast_changes_nothing",
    }


def test_the_command_for_an_added_loss_runs_it(clone, tmp_path):
    """As printed, but for one seed and level, one epoch and few images."""
    printed = re.search(r"`make benchmark ARGS='(.*?)'`", section("Adding a loss")).group(1)
    short = ["--seeds", "0", "--levels", "embedding", "--set", "epochs=1", "--set", "floors=[]"]
    said = clone("harness.cli", "run", "quick", "--out", tmp_path / "run", *shlex.split(printed), *short)
    assert "1 of 1 trials done" in said
    assert "soft_contrastive" in (tmp_path / "run/leaderboard.csv").read_text()
