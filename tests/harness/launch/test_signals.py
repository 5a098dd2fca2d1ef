"""The first Ctrl-C ends a run in order, the second the process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launch.signals import Stop, interrupt, stoppable

ROOT = Path(__file__).parents[3]
TWICE = """
from harness.launch.signals import Stop, interrupt, stoppable
with stoppable(stop := Stop()):
    interrupt()
    print(stop.requested, flush=True)
    interrupt()
    print("still here")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_a_stop_and_handlers_are_restored(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    stop, other = Stop(), Stop()
    with stoppable(stop):
        os.kill(os.getpid(), number)
    assert (stop.requested, other.requested) == (True, False)
    assert {each: signal.getsignal(each) for each in before} == before
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_tune_is_asked_to_end_its_loop():
    heard = []
    with stoppable(Stop()):
        signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
        interrupt()
    assert heard == [signal.SIGUSR1]


def test_a_second_signal_ends_the_process():
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "True\n")
