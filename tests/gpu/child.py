"""Processes beside the one that measures: one that runs a trial, and one that takes memory.

python -m tests.gpu.child trial '<the trial as JSON>' RUN DATA CACHE DEVICE SHARE
python -m tests.gpu.child hold LEFT_BYTES DEVICE
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.config import Trial
from harness.training.bench import Sources
from harness.training.trial import steps

GIGABYTE = 2**30
ROOT = Path(__file__).parents[2]


def run_trial(trial: str, run: str, data: str, cache: str, device: str, share: str) -> None:
    """Run a trial and say after each epoch how many are behind it."""
    sources = Sources(run, Path(data), Path(cache), device, gpu_share=float(share))
    for progress in steps(Trial.model_validate_json(trial), sources):
        print(json.dumps({"epochs": max((epoch.epoch for epoch in progress.curve), default=0)}), flush=True)


def hold(left: str, device: str) -> None:
    """Take the device's memory until about `left` bytes are free, and keep it until the input ends."""
    held = []
    if device == "cpu":
        held.append(torch.ones(2**20))
    else:
        while (free := torch.cuda.mem_get_info(device)[0]) > int(left):
            size = min(GIGABYTE, free - int(left))
            if size < 2**21:
                break
            held.append(torch.ones(size, dtype=torch.uint8, device=device))
    print(json.dumps({"held": sum(some.nbytes for some in held)}), flush=True)
    sys.stdin.read()


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen]:
    """A child with this command line, ended for certain."""
    command = [sys.executable, "-m", "tests.gpu.child", *map(str, words)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def said(child: subprocess.Popen) -> dict:
    """The next thing a child says; RuntimeError where it has ended instead."""
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"the process beside ended with {child.wait()} before it said anything; see log.txt")
    return json.loads(line)


if __name__ == "__main__":
    {"trial": run_trial, "hold": hold}[sys.argv[1]](*sys.argv[2:])
