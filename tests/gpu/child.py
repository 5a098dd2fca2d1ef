"""Processes next to the measuring one: one runs a trial, and one occupies memory.

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
from harness.training.pictures import Sources
from harness.training.trial import steps

GIGABYTE = 2**30
ROOT = Path(__file__).parents[2]


def run_trial(trial: str, run: str, data: str, cache: str, device: str, share: str) -> None:
    """Run a trial and print after each epoch how many are finished."""
    sources = Sources(run, Path(data), Path(cache), device, gpu_share=float(share))
    for progress in steps(Trial.model_validate_json(trial), sources):
        print(json.dumps({"epochs": max((epoch.epoch for epoch in progress.curve), default=0)}), flush=True)


def hold(left: str, device: str) -> None:
    """Occupy the device's memory until about `left` bytes are free, and keep it until standard input ends."""
    held = []
    if device == "cpu":
        held.append(torch.ones(2**20))
    else:
        while (free := torch.cuda.mem_get_info(device)[0]) > int(left):
            size = min(GIGABYTE, free - int(left))
            if size < 2**21:
                break
            held.append(torch.ones(size, dtype=torch.uint8, device=device))
    print(json.dumps({"held": sum(tensor.nbytes for tensor in held)}), flush=True)
    sys.stdin.read()


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen]:
    """Start a child with this command line, and kill it at the end."""
    command = [sys.executable, "-m", "tests.gpu.child", *map(str, words)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def next_message(child: subprocess.Popen) -> dict:
    """Return the next message of a child. Raise RuntimeError if it has ended."""
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"the child ended with status {child.wait()} before it wrote anything; see log.txt")
    return json.loads(line)


if __name__ == "__main__":
    {"trial": run_trial, "hold": hold}[sys.argv[1]](*sys.argv[2:])
