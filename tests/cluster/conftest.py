"""A cluster on this machine, and a grid whose trials last long enough for fault injection."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.machines import ROOT, Machines

GRID = """
name: small
datasets: [{name: glyphs, options: {classes: 24}}]
backbones: [{name: test_resnet, stage: layer3}]
losses: [contrastive, multi_similarity]
levels: [baseline, embedding]
floors: []
seeds: [0]
model: {dim: 16}
images: {side_px: 32, crop_scale: [0.6, 1.0]}
training: {epochs: 8, batch_size: 20, examples_per_class: 5, lr: 1e-3, schedule: constant}
"""
TRIALS = 4


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "small.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def machines(tmp_path):
    found = []

    def make(*nodes) -> Machines:
        (folder := tmp_path / f"cluster-{len(found)}").mkdir()
        found.append(Machines(folder, nodes or ((1, 0), (1, 0))))
        return found[-1]

    yield make
    for cluster in found:
        cluster.end()


class Driver:
    """A driver on a cluster: the real command, with its output line by line."""

    def __init__(self, cluster: Machines, *words, address: str | None = None, patience_s: float | None = None):
        patience = {} if patience_s is None else {"METRIX_BENCH_PATIENCE_S": str(patience_s)}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *map(str, words), "--address", address or cluster.address],
            env={**cluster.environment, **patience, "COLUMNS": "120"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        os.set_blocking(self._output.fileno(), False)

    @property
    def text(self) -> str:
        """All output so far."""
        while line := self._output.readline():
            self.lines.append(line)
        return "".join(self.lines)

    def until(self, true: Callable[[], object], seconds: float = 240) -> None:
        """Wait until `true` returns true; fail with the output if it does not in time, or if the driver ends."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None or true(), self.text
            time.sleep(0.1)

    def says(self, words: str, seconds: float = 240) -> None:
        """Wait until these words are in the output."""
        self.until(lambda: words in self.text, seconds)

    def ends(self, seconds: float = 300) -> int:
        """Wait for the driver to end; return its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)
            _ = self.text
        return self.process.returncode

    def kill(self) -> None:
        """Kill the driver and its supervisor with SIGKILL."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def drive():
    drivers = []

    def start(*given, **how) -> Driver:
        drivers.append(Driver(*given, **how))
        return drivers[-1]

    yield start
    for driver in drivers:
        if driver.process.poll() is None:
            driver.kill()


@pytest.fixture(scope="session")
def undisturbed(small, tmp_path_factory) -> Path:
    """The grid, run without faults in one process, without ray."""
    from harness.grid import Grid
    from harness.training.trial import run_trial

    folder = tmp_path_factory.mktemp("undisturbed")
    for trial in Grid.load(small).trials():
        run_trial(trial, folder)
    return folder
