"""The real command line, from a grid file to a leaderboard, and the interruptions it survives."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli import main

ROOT = Path(__file__).parent.parent

GRID = """
name: tiny
datasets: [{name: glyphs, options: {classes: 24}}]
backbones: [{name: test_resnet, stage: layer3}]
losses: [contrastive]
levels: [baseline, embedding, input]
seeds: [0, 1]
model: {dim: 16}
images: {side_px: 32, crop_scale: [0.6, 1.0]}
training: {epochs: 2, batch_size: 20, examples_per_class: 5, lr: 1e-3, schedule: constant}
"""
TRIALS = 2 * 3 + 2 + 1


def start(*words) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )


def command(*words) -> tuple[int, str]:
    process = start(*words)
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "records").glob("*.json"))}


def scores(folder: Path) -> dict[str, dict]:
    """Return what must not depend on when, where or how often a trial ran."""
    keys = ("test", "validation", "selected_epoch")
    found = {}
    for name, text in contents(folder).items():
        record = json.loads(text)
        curve = [(epoch["loss"], epoch["validation"]) for epoch in record["curve"]]
        found[name] = {**{key: record[key] for key in keys}, "curve": curve}
    return found


@pytest.fixture(scope="session")
def grid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "tiny.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="session")
def finished(grid, tmp_path_factory) -> tuple[Path, str]:
    """Return the folder of an uninterrupted run of the grid, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, text = command("run", grid, "--out", folder, "--track", "tensorboard")
    assert code == 0, text
    return folder, text


def test_a_run_leaves_one_record_per_trial_and_a_leaderboard(finished):
    folder, text = finished
    assert len(contents(folder)) == TRIALS
    assert all((folder / f"leaderboard.{suffix}").stat().st_size for suffix in ("csv", "md", "tex", "html"))
    assert "contrastive" in text
    assert "R@1" in text
    assert not list(folder.glob("checkpoints/*/*"))
    assert not list(folder.rglob("*.tmp"))
    assert {path.suffix for path in (folder / "records").iterdir()} == {".json"}
    assert len(list((folder / "per_query").glob("*.npz"))) == TRIALS
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == TRIALS
    assert len({path.parent.name for path in folder.rglob("events.out.tfevents*")}) == TRIALS


def test_the_table_shows_the_mean_of_the_records(finished):
    folder, _ = finished
    records = [json.loads(text) for text in contents(folder).values()]
    of_arm = [record["test"]["R@1"] for record in records if record["arm"] == "contrastive+embedding"]
    assert len(of_arm) == 2
    assert f"{100 * sum(of_arm) / 2:.1f}" in (folder / "leaderboard.md").read_text()


def test_a_second_run_repeats_nothing(finished, grid):
    folder, _ = finished
    before = contents(folder)
    code, text = command("run", grid, "--out", folder)
    assert code == 0, text
    assert contents(folder) == before


TWICE = """
from harness.launch import environment
environment.prepare(None)
from harness.launch.cluster import opened
for _ in range(2):
    with opened(None) as cluster:
        print(len(cluster.nodes()))
"""


def test_a_process_can_start_ray_twice():
    """A notebook does so when it runs several grids, and `retry` when a folder holds several."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_a_driver_killed_in_the_middle_loses_nothing(finished, grid, tmp_path):
    first = start("run", grid, "--out", tmp_path)
    deadline = time.monotonic() + 300
    while len(contents(tmp_path)) < 4 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = contents(tmp_path)
    assert 4 <= len(kept) < TRIALS
    time.sleep(2)  # the workers notice that their driver is gone
    kept = contents(tmp_path)
    code, text = command("run", grid, "--out", tmp_path)
    assert code == 0, text
    assert {name: contents(tmp_path)[name] for name in kept} == kept
    assert scores(tmp_path) == scores(finished[0])


def test_control_c_tells_how_to_continue(grid, tmp_path):
    process = start("run", grid, "--out", tmp_path)
    deadline = time.monotonic() + 300
    while not contents(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert re.search(r"interrupted with \d trials? to go; run the same command again", text)
    assert (tmp_path / "leaderboard.md").exists()


def test_a_failed_trial_is_shown_and_the_others_continue(grid, tmp_path):
    code, text = command("run", grid, "--out", tmp_path, "--seeds", "0", "--levels", "baseline", "--set", "lr=1e30")
    assert code == 1, text
    assert len(contents(tmp_path)) == 2  # the floors
    (failure,) = (json.loads(path.read_text()) for path in (tmp_path / "failures").iterdir())
    assert failure["kind"] == "diverged"
    assert re.search(r"the loss is (nan|inf) at epoch \d, step \d", failure["reason"])
    assert "fail" in (tmp_path / "leaderboard.md").read_text()
    assert "diverged" in (tmp_path / "leaderboard.md").read_text() or "the loss is" in text


def test_a_truncated_record_is_reported_and_its_trial_runs_again(finished, grid, tmp_path):
    folder, _ = finished
    for name, text in contents(folder).items():
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / name).write_bytes(text)
    victim = next(path for path in (tmp_path / "records").iterdir() if "untrained" in path.name)
    victim.write_bytes(victim.read_bytes()[:200])
    code, text = command("run", grid, "--out", tmp_path)
    assert code == 0, text
    assert victim.name.removesuffix(".json") in text
    assert len(list((tmp_path / "set_aside").iterdir())) == 1
    assert scores(tmp_path) == scores(folder)


def test_results_of_other_settings_are_refused(finished, grid):
    folder, _ = finished
    before = contents(folder)
    code, text = command("run", grid, "--out", folder, "--set", "epochs=3")
    assert code == 2
    assert "training.epochs was 2 and is now 3" in text
    assert contents(folder) == before


@pytest.mark.slow
def test_the_folds_of_a_seed_make_one_row(grid, tmp_path, capsys):
    """Two folds of a tiny grid, run, audited and verified; one of them once more without ray."""
    folder, small = tmp_path / "folds", ("--set", "folds=2", "--set", "epochs=1", "--seeds", "0")
    code, text = command("run", grid, "--out", folder, *small, "--levels", "baseline,embedding")
    assert code == 0, text
    records = {name: json.loads(content) for name, content in contents(folder).items()}
    assert len(records) == 2 * (2 + 2)
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == 8
    own = [record for record in records.values() if record["arm"] == "contrastive"]
    assert [record["data"]["classes"] for record in own] == [{"train": 12, "validation": 12, "test": 24}] * 2
    assert len({record["data"]["split_fingerprint"] for record in own}) == 2
    assert len({record["provenance"]["initial_weights"] for record in own}) == 1
    table = (folder / "leaderboard.md").read_text()
    assert f"{100 * sum(record['test']['R@1'] for record in own) / 2:.1f}" in table
    assert "each the mean over 2 class-disjoint folds" in table
    assert main(["audit", str(folder)]) == 0
    audited = capsys.readouterr().out
    assert "0 errors" in audited
    assert "FAIR-03" not in audited
    assert "FAIR-08" not in audited
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "matching records: 8 of 8"
    alone = tmp_path / "alone"
    assert main(["trial", str(grid), *small, "--arm", "contrastive", "--fold", "2", "--out", str(alone)]) == 0
    (name,) = contents(alone)
    assert "-s0-f2of2-" in name
    assert scores(alone)[name] == scores(folder)[name]


def test_one_trial_without_ray(finished, grid, tmp_path):
    code, text = command("trial", grid, "--arm", "contrastive+embedding", "--seed", "1", "--out", tmp_path)
    assert code == 0, text
    assert "epoch 2/2" in text
    (name,) = contents(tmp_path)
    assert scores(tmp_path)[name] == scores(finished[0])[name]
