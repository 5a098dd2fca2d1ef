"""What the harness adds to trials on a cluster, and how soon it goes on after something dies.

overhead     wall seconds a trial beyond its own, at steady state: (wall − Σ trial seconds ÷ slots) ÷ trials
plan         seconds to plan 100,000 trials, ids included
worker       seconds from kill -9 of a worker until its trial trains again
driver       seconds from the command after kill -9 of the driver until something trains
two nodes    seconds of a grid on one node of one core ÷ on two
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.grid import Grid
from harness.launch import Unseen, run_grid
from tests.cluster.consistency import workers
from tests.cluster.machines import ROOT, Machines

SETTINGS = """
name: perf
datasets: [{name: glyphs, options: {classes: 24}}]
backbones: [{name: test_resnet, stage: layer3}]
losses: [contrastive]
levels: [baseline]
floors: []
seeds: [0]
model: {dim: 16}
images: {side_px: 32, crop_scale: [0.6, 1.0]}
training: {epochs: 40, batch_size: 20, examples_per_class: 5, lr: 1.0e-3, schedule: constant}
keep: none
"""


class Events(Unseen):
    """What a run tells its view, with the time."""

    def __init__(self):
        self.started_at, self.finished_at = [], []

    def started(self, trial, where, attempt):
        self.started_at.append((time.monotonic(), trial.id, attempt))

    def finished(self, trial_id, score, seconds, metric="R@1"):
        self.finished_at.append((time.monotonic(), seconds))


def overhead(folder: Path, count: int) -> None:
    """Untrained networks: trials of a few tenths of a second."""
    grid = Grid.load(_grid(folder)).model_copy(
        update={"losses": (), "floors": ("untrained",), "seeds": tuple(range(count))}
    )
    events = Events()
    outcome = run_grid(grid, folder / "overhead", watch=lambda screen: events)
    steady = events.finished_at[count // 10 :]
    wall, own = steady[-1][0] - steady[0][0], sum(seconds for _, seconds in steady[1:])
    beyond = (wall - own / outcome.slots) / (len(steady) - 1)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    mean = own / (len(steady) - 1)
    print(f"overhead, {count} trials of {mean:.2f} s on {round(outcome.slots, 1):g} slots")
    print(f"  wall beyond the trials' own {beyond:.3f} s a trial   (aim: 0.2 or less)")
    print(f"  driver's memory at its peak {peak_gb:.2f} GB   (aim: under 1)")


def planning() -> None:
    """A hundred thousand trials of the quick grid."""
    from harness.launch.plan import make_plan

    grid = Grid.load("quick").model_copy(update={"seeds": tuple(range(7700))})
    make_plan(Grid.load("quick"))  # imports
    began = time.perf_counter()
    plan = make_plan(grid)
    ids = {trial.id for trial in plan.trials}
    print(f"plan of {len(ids):,} trials {time.perf_counter() - began:.1f} s   (aim: under 10)")


def after_deaths(folder: Path) -> None:
    """One node, one trial of many epochs: its worker dies, then its driver."""
    cluster = Machines(folder, ((1, 0),))
    try:
        out, log = folder / "deaths", (folder / "deaths.txt").open("w")
        driver = _driver(cluster, _grid(folder), out, log)
        _until(lambda: _epochs(out) >= 2)
        before = _epochs(out)
        began = time.monotonic()
        os.kill(workers(cluster.mark)[0], signal.SIGKILL)
        _until(lambda: _epochs(out) > before + 1)
        print(f"worker killed; its trial trains again after {time.monotonic() - began:.1f} s   (aim: 15 or less)")
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        before = _epochs(out)
        began = time.monotonic()
        driver = _driver(cluster, _grid(folder), out, log)
        _until(lambda: _epochs(out) > before + 1)
        print(f"driver killed; training again after {time.monotonic() - began:.1f} s   (aim: 20 or less)")
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    finally:
        cluster.end()


def two_nodes(folder: Path, seeds: int) -> None:
    """The same grid on one node and on two, seconds between the first start and the last end."""
    walls = []
    for nodes in (1, 2):
        (home := folder / f"nodes{nodes}").mkdir()
        cluster = Machines(home, ((1, 0),) * nodes)
        try:
            words = ["--set", "epochs=20", "--set", f"seeds={list(range(seeds))}"]
            with (home / "driver.txt").open("w") as log:
                driver = _driver(cluster, _grid(home), home / "run", log, *words)
                _until(lambda home=home: (home / "run/logs").exists() and any((home / "run/logs").iterdir()))
                began = time.monotonic()
                driver.wait()
            ended = max(path.stat().st_mtime for path in (home / "run/records").iterdir())
            walls.append(ended - (time.time() - (time.monotonic() - began)))
        finally:
            cluster.end()
    print(f"{seeds} trials on one node {walls[0]:.0f} s, on two {walls[1]:.0f} s")
    print(f"  ratio {walls[0] / walls[1]:.2f}   (aim: 1.8 or more)")


def _grid(folder: Path) -> Path:
    path = folder / "perf.yaml"
    path.write_text(SETTINGS)
    return path


def _driver(cluster: Machines, grid: Path, out: Path, log, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "run", grid, "--out", out, "--address", cluster.address, *words],
        env=cluster.environment,
        cwd=ROOT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _epochs(out: Path) -> int:
    """The epochs that logs tell of, over all attempts."""
    return sum(path.read_text().count("  epoch ") for path in out.glob("logs/*.log"))


def _until(true, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to be")
        time.sleep(0.05)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="of the overhead; the aim is stated for 1000")
    parser.add_argument("--seeds", type=int, default=8, help="trials of the grid on one node and on two")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metrix-perf-") as folder:
        overhead(Path(folder), options.trials)  # first: it reads this process's peak of memory
        planning()
        after_deaths(Path(folder))
        two_nodes(Path(folder), options.seeds)


if __name__ == "__main__":
    main()
