"""Ranks end with rank 0, and the failure of a rank is raised by the trial."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.config import Choice, Model
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training.parallel import Parallel
from harness.training.pictures import Sources
from harness.training.ranks import RankFailed, Ranks
from harness.training.trial import run_trial, steps

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def raises(rank):
    if rank:
        raise KeyError("raised on rank 1")


def linear() -> Any:
    """A network small enough to meet over."""
    return nn.Linear(2, 2)


def runs_out_of_memory(rank):
    raise torch.OutOfMemoryError("of rank 1")


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (raises, RankFailed, "rank 1 of 2: KeyError: 'raised on rank 1'"),
        (runs_out_of_memory, torch.OutOfMemoryError, "rank 1 of 2: OutOfMemoryError: of rank 1"),
    ],
)
def test_the_error_of_a_rank_is_raised_by_the_trial(function, error, words):
    def meet():
        with Ranks(2, CPU, function) as ranks:
            ranks.join()
            Parallel(linear())

    with pytest.raises(error, match=words):
        meet()


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="proxy_anchor+embedding", norm: Any = "train", **training):
        trial = make_trial(arm, **{"epochs": 2, "lr": 1e-4, **training})
        glyphs = Choice(name="glyphs", options={"classes": 16})
        return trial.model_copy(update={"dataset": glyphs, "model": Model(dim=16, norm=norm), "keep": "weights"})

    return tiny


def ranks_of(pid):
    """The ranks that a process started; other tests may have left it with other children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in children if "harness.training.ranks" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def gone(pid, within_s=5.0):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def waits(rank):
    """Meets rank 0 once, and waits for it to come again."""
    Parallel(linear())
    Parallel(linear())


def sleeps(rank):
    """Meets rank 0 once, and is busy with something else when that comes again."""
    Parallel(linear())
    time.sleep(60)


def test_a_killed_rank_is_noticed():
    def meet():
        with Ranks(2, CPU, sleeps) as ranks:
            ranks.join()
            Parallel(linear())
            (other,) = ranks_of(os.getpid())
            os.kill(other, signal.SIGKILL)
            Parallel(linear())

    with pytest.raises(RankFailed, match=r"rank 1 of 2: ended by signal 9 \(SIGKILL\)"):
        meet()
    assert ranks_of(os.getpid()) == []


def aborts(rank):
    """Ends as a library does that finds no way on: it writes why, and raises nothing."""
    os.write(2, b"what(): no room for a buffer\n")
    os.abort()


def test_the_last_line_of_an_aborted_rank_is_reported():
    def meet():
        with Ranks(2, CPU, aborts) as ranks:
            ranks.join()
            Parallel(linear())

    with pytest.raises(
        RankFailed, match=r"rank 1 of 2: ended by signal 6 \(SIGABRT\): what\(\): no room for a buffer$"
    ):
        meet()


def test_no_rank_outlives_rank_0():
    script = (
        "import time; from torch import nn; from harness.training.parallel import Parallel\n"
        "from harness.training.ranks import Ranks\n"
        "from tests.harness.training.test_ranks import CPU, waits\n"
        "with Ranks(2, CPU, waits) as ranks: ranks.join(); Parallel(nn.Linear(2, 2)); print('met', flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"met\n"
        (rank,) = ranks_of(process.pid)
        process.kill()
    assert gone(rank)


def test_a_trial_of_two_ranks_scores_what_one_does_and_is_resumed(tiny, tmp_path):
    trial = tiny()
    alone = run_trial(trial, tmp_path / "alone")
    running = steps(trial, Sources(tmp_path, ranks=2))
    next(running)
    (rank,) = ranks_of(os.getpid())
    running.close()
    assert gone(rank)
    record = run_trial(trial, tmp_path, ranks=2)
    assert [e.loss for e in record.curve[1:]] == pytest.approx([e.loss for e in alone.curve[1:]], rel=1e-3)
    assert record.test["MAP@R"] == pytest.approx(alone.test["MAP@R"], abs=1e-3)
    assert record.test["R@1"] == pytest.approx(alone.test["R@1"], abs=0.01)  # two of 234 queries
    assert (record.provenance["ranks"], alone.provenance["ranks"]) == (2, 1)
    assert record.cost.forward_passes_per_step == alone.cost.forward_passes_per_step
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1
    assert ranks_of(os.getpid()) == []
    two, one = (
        checkpoint.load(Run(folder).checkpoints(trial) / "last.safetensors")[0]
        for folder in (tmp_path, tmp_path / "alone")
    )
    assert two["model"].keys() == one["model"].keys()
    assert two["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]


def test_more_ranks_than_rows_are_rejected(tiny, tmp_path):
    with pytest.raises(ValueError, match="ranks = 21 cannot share a batch: batch_size = 20"):
        run_trial(tiny(), tmp_path, ranks=21)
