"""A soak test: a grid of many short trials on a cluster of this machine, with a fault every few seconds.

    python -m tests.cluster.soak --trials 200 --seed 0 --every 20 --minutes 60

The seed determines the faults: a worker is killed or suspended; a node is killed and another one joins, whose clock
may be hours slow; the driver is killed and started again; a second driver is started beside it; the run folder is
unavailable for half a minute, or its disk is full for as long; a checkpoint is truncated; the head is killed and
restarts. A consistency check follows: one record and one test read for each trial, no files or processes left over,
and for some trials the scores of an undisturbed run. Faults end after --minutes, and the soak fails if the grid takes
longer than as many minutes again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from harness.grid import Grid
from harness.training.trial import run_trial
from tests import disks
from tests.cluster.consistency import inconsistencies, processes, records, scores, workers
from tests.cluster.machines import FAKETIME, ROOT, Machines

GRID = """
name: soak
datasets: [{{name: glyphs, options: {{classes: 24}}}}]
backbones: [{{name: test_resnet, stage: layer3}}]
losses: [contrastive, multi_similarity]
levels: [baseline, embedding]
floors: []
seeds: {seeds}
model: {{dim: 16}}
images: {{side_px: 32, crop_scale: [0.6, 1.0]}}
training: {{epochs: {epochs}, batch_size: 20, examples_per_class: 5, lr: 1.0e-3, schedule: constant}}
resources: {{retries: 5, epoch_timeout_s: {timeout}}}
"""
ARMS = 4
TIMEOUT_S = 30
UNAVAILABLE_S = 30.0
DISK_BYTES = 15 * 10**8  # of which the preflight wants a gigabyte
HOURS = (0, 0, -5) if FAKETIME else (0,)  # by which the clock of a new node is off


class Soak:
    """The cluster, the driver on it, and the faults that can be injected."""

    def __init__(self, folder: Path, grid: Path, seed: int, out: Path, say: Callable[[str], None] = print):
        self.random, self.grid, self.out, self.say = random.Random(seed), grid, out, say
        self.machines = Machines(folder, ((1, 0), (1, 0)))
        self.alive, self.counts = list(self.machines.nodes), Counter()
        self.log = (folder / "driver.txt").open("a")
        self.driver = self._drive()

    def _drive(self) -> subprocess.Popen:
        words = ["run", self.grid, "--out", self.out, "--address", self.machines.address]
        return subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *words],
            env={**self.machines.environment, "METRIX_BENCH_PATIENCE_S": "120"},
            cwd=ROOT,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def inject(self, kinds: tuple[str, ...]) -> None:
        """Inject a random fault, of one of the `kinds` that were least frequent so far."""
        least = min(self.counts[kind] for kind in kinds)
        kind = self.random.choice([kind for kind in kinds if self.counts[kind] <= least + 1])
        if getattr(self, f"_{kind}")():
            self.counts[kind] += 1
            self.say(f"{kind}: {len(records(self.out))} done")

    def _worker(self) -> bool:
        """Kill a process that trains."""
        return self._signal(signal.SIGKILL)

    def _hang(self) -> bool:
        """Suspend a process that trains."""
        return self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> bool:
        if not (found := workers(self.machines.mark)):
            return False
        try:
            os.kill(self.random.choice(found), number)
        except ProcessLookupError:
            return False
        return True

    def _node(self) -> bool:
        """Kill a node with everything that runs on it, and add another one."""
        victim = self.alive.pop(self.random.randrange(len(self.alive)))
        self.machines.kill(victim)
        self.alive.append(self.machines.add(hours=self.random.choice(HOURS)))
        return True

    def _driver(self) -> bool:
        """Kill the driver and its supervisor, and start the command again."""
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        self.driver = self._drive()
        return True

    def _second(self) -> bool:
        """Start the command beside a living driver, which must be refused."""
        if not self._running():
            return False
        second = self._drive()
        while self.driver.poll() is None and second.poll() is None:
            time.sleep(0.2)
        if second.poll() is None:  # the first driver has just ended
            self.driver = second
            return False
        if self.driver.poll() is None and second.returncode != 2:
            raise AssertionError(f"a second driver ended with {second.returncode}")
        return True

    def _full(self) -> bool:
        """Fill the disk of the run folder for a while, unless a driver is starting, which would report it."""
        if not self._running():
            return False
        filler = disks.fill(self.out.parent)
        time.sleep(UNAVAILABLE_S)
        filler.unlink()
        return True

    def _running(self) -> bool:
        """Return whether a driver is running, by a recent state."""
        state = self.out / "state.json"
        if not state.exists() or time.time() - state.stat().st_mtime > 6:
            return False
        return json.loads(state.read_text())["state"] == "running"

    def _storage(self) -> bool:
        """Move the run folder away for a while, unless a driver is starting, which could not notice it."""
        if not self._running():
            return False
        elsewhere = self.out.with_name(self.out.name + ".away")
        self.out.rename(elsewhere)
        time.sleep(UNAVAILABLE_S)
        if self.out.exists():
            raise AssertionError(f"{self.out} was created again while it was unavailable")
        elsewhere.rename(self.out)
        return True

    def _checkpoint(self) -> bool:
        """Truncate a checkpoint, and kill the processes that could have its content."""
        found = sorted(self.out.glob("checkpoints/*/last.safetensors"))
        if not found:
            return False
        try:
            path = self.random.choice(found)
            os.truncate(path, path.stat().st_size // 2)
        except FileNotFoundError:
            return False
        for pid in workers(self.machines.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return True

    def _head(self) -> bool:
        """Kill the head and restart it at its address with one node; the supervisor restarts the driver."""
        self.machines.restart()
        self.alive = [0]
        self.alive.append(self.machines.add())
        return True

    def close(self) -> list[str]:
        """Stop the cluster; return sentences on processes that are left."""
        if self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
        mark = self.machines.mark
        self.machines.end()
        deadline = time.monotonic() + 40  # ray's agents linger
        while (left := processes(mark)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return [f"process {pid} is left: {_command(pid)}" for pid in left]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:120]
    except OSError:
        return "gone"


ALL = ("worker", "node", "driver", "second", "storage", "full", "checkpoint", "hang", "head")


def soak(
    folder: Path,
    trials: int,
    seed: int,
    every_s: float,
    seconds: float,
    epochs: int = 3,
    compared: int = 8,
    kinds: tuple[str, ...] = ALL,
    in_turn: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[Counter, list[str]]:
    """Run the soak; return how often each fault was injected, and all inconsistencies.

    `compared`: the number of trials whose scores are compared with an undisturbed run. `in_turn`: inject each kind
    once, in this order.
    """
    grid = folder / "soak.yaml"
    grid.write_text(GRID.format(seeds=list(range(-(-trials // ARMS))), epochs=epochs, timeout=TIMEOUT_S))
    with ExitStack() as stack:
        if (reason := disks.mount(folder / "disk", DISK_BYTES)) is None:
            stack.callback(disks.unmount, folder / "disk")
        elif "full" in kinds:
            say(f"full is left out: {reason}")
            kinds = tuple(kind for kind in kinds if kind != "full")
        return _soaked(Soak(folder, grid, seed, folder / "disk/run", say), seconds, every_s, kinds, in_turn, compared)


def _soaked(
    soak: Soak, seconds: float, every_s: float, kinds: tuple[str, ...], in_turn: bool, compared: int
) -> tuple[Counter, list[str]]:
    """Run the soak with a cluster that has started."""
    try:
        while soak.driver.poll() is None and not list(soak.out.glob("checkpoints/*/last.safetensors")):
            time.sleep(0.2)
        began = time.monotonic()
        while soak.driver.poll() is None and time.monotonic() - began < seconds:
            done = sum(soak.counts.values())
            if in_turn and done == len(kinds):
                break
            soak.inject(kinds[done : done + 1] if in_turn else kinds)
            time.sleep(every_s * soak.random.uniform(0.5, 1.5))
        soak.say(f"{sum(soak.counts.values())} faults; no more follow")
        deadline = time.monotonic() + max(seconds, 300)
        while soak.driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        code = soak.driver.poll()
    finally:
        left = soak.close()
    found = [] if code == 0 else [f"the driver ended with {code}"]
    found += inconsistencies(soak.out) + left
    planned, undisturbed = Grid.load(soak.grid).trials(), soak.out.with_name("undisturbed")
    sample = soak.random.sample(planned, min(compared, len(planned)))
    for trial in sample:
        run_trial(trial, undisturbed)
    expected, actual = scores(undisturbed), scores(soak.out)
    found += [
        f"its scores differ from an undisturbed run: {t.id}" for t in sample if expected[t.id] != actual.get(t.id)
    ]
    return soak.counts, found


def main() -> int:
    """Run the soak and print what happened; return 1 if the run folder is inconsistent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between faults, on average")
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long faults are injected")
    parser.add_argument("--kinds", default=",".join(ALL), help="faults to inject")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metrix-soak-") as folder:
        began = time.monotonic()
        counts, found = soak(
            Path(folder),
            options.trials,
            options.seed,
            options.every,
            60 * options.minutes,
            kinds=tuple(options.kinds.split(",")),
            say=lambda text: print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True),
        )
        print(
            f"{options.trials} trials in {(time.monotonic() - began) / 60:.1f} minutes; "
            + ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items()))
        )
        for sentence in found:
            print(f"INCONSISTENT: {sentence}")
        print(f"consistency check: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
        if found:
            print((Path(folder) / "driver.txt").read_text()[-6000:])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
