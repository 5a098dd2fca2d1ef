"""What make passes to the program, and when it installs anything."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def make(tmp_path):
    """Run make with an environment whose python prints its arguments, one per line."""
    (tmp_path / "env/bin").mkdir(parents=True)
    python = tmp_path / "env/bin/python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    sources = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    stamp = tmp_path / f"env/.installed-{hashlib.sha256(sources).hexdigest()[:16]}"
    stamp.touch()
    os.utime(stamp, (0, 0))  # older than every file of the checkout

    def make(*words):
        done = subprocess.run(
            ["make", "--no-print-directory", f"VENV={tmp_path / 'env'}", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.splitlines() if done.returncode == 0 else done.stderr

    return make


def test_spaces_and_quotes_reach_the_program_and_an_old_stamp_installs_nothing(make):
    words = make("benchmark", "GRID=my grids/it's mine.yaml", "DATA=a folder's", "ADDRESS=a b", "ARGS=--set epochs=2")
    assert words == [
        *("-m", "harness.cli", "run", "my grids/it's mine.yaml", "--out", "results/runs/it's mine"),
        *("--data", "a folder's", "--address", "a b", "--set", "epochs=2"),
    ]
    assert make("benchmark") == ["-m", "harness.cli", "run", "quick", "--out", "results/runs/quick"]
    assert make("report", "OUT=a b") == ["-m", "harness.cli", "report", "a b"]


def test_photographs_choose_the_grid_and_weights_reach_the_program(make):
    run = ["-m", "harness.cli", "run"]
    assert make("benchmark", "DATA=x") == [*run, "photos", "--out", "results/runs/photos", "--data", "x"]
    assert make("benchmark", "DATA=x", "GRID=quick")[3] == "quick"
    words = make("benchmark", "DATA=my photos", "WEIGHTS=its file.safetensors", "OUT=there")
    assert words[3:] == ["photos", "--out", "there", "--data", "my photos", "--weights", "its file.safetensors"]


def test_an_environment_with_a_space_in_its_name_is_refused(make):
    assert "name a folder without spaces" in make("benchmark", "VENV=a b")


def test_no_stamp_depends_on_the_time_of_a_file():
    rules = [
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith(("$(STAMP)", "$(S3)", "$(AUDIT)"))
    ]
    assert len(rules) == 3
    assert [rule for rule in rules if rule.partition(":")[2].strip()] == []


def test_every_target_of_continuous_integration_exists(make):
    lines = [line.partition("make ")[2].split() for line in (ROOT / ".ci/run").read_text().splitlines()]
    targets = [target for targets in lines for target in targets]
    assert targets == ["setup", "s3", "audit", "lint", "docs", "test"]
    assert isinstance(make("--dry-run", *targets), list)
