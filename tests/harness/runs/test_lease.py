"""One driver at a time, on one machine and on several; a dead one is replaced in bounded time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.runs import lease
from harness.runs.errors import RunError
from harness.runs.run import Run

BEAT_S = 0.3
HOLDER = """
import sys, time
from harness.runs.run import Run
run = Run(sys.argv[1])
run.prepare()
with run.lock(host=sys.argv[2] or None, every_s=float(sys.argv[3])) as held:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket")


@pytest.fixture
def hold(place):
    """Start a process that holds the run, as a driver on the machine `host`."""
    started = []

    def start(host=""):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, place, host, str(BEAT_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_living_holder_elsewhere_is_named_and_a_dead_one_replaced(place, hold, capfd):
    first, run = hold(host="far"), Run(place)
    with pytest.raises(RunError, match=f"is in use by process {first.pid} on far since .*OUT="):  # noqa: SIM117
        with run.lock(host="near", every_s=BEAT_S):
            pass
    first.kill()
    first.wait()
    began = time.monotonic()
    with run.lock(host="near", every_s=BEAT_S) as held:
        assert 3 * BEAT_S < time.monotonic() - began < 3 * BEAT_S + 5
        assert not held.lost
    assert run._storage.read(lease.NAME) is None
    assert "was held by process" in capfd.readouterr().err


def test_a_restart_on_the_same_machine_after_a_kill_does_not_wait(place, hold):
    first, run = hold(), Run(place)
    with pytest.raises(RunError, match=f"in use by process {first.pid} on "), run.lock(every_s=BEAT_S):
        pass
    first.kill()
    first.wait()
    began = time.monotonic()
    with run.lock(every_s=30.0):  # were it watched, this would be the time it takes
        assert time.monotonic() - began < 5


def test_a_holder_notices_that_it_was_replaced(place):
    run = Run(place)
    run.prepare()
    with run.lock(host="far", every_s=BEAT_S) as held:
        assert not held.lost
        other = lease.Holder("near", "of near", 1, "another nonce", "now")
        run._storage.write(lease.NAME, lease.content(other))
        time.sleep(3 * BEAT_S + 1)
        assert held.lost
    assert lease.holder(run._storage.read(lease.NAME) or b"") == other, "what is another's stays"
