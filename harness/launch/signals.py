"""Ctrl-C, SIGTERM and requests to stop: the first ends the run in order, the second ends the process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether a stop of a run was requested; one for each run."""

    requested: bool = False


def interrupt() -> None:
    """End the run in order, as Ctrl-C does; callable from any thread."""
    os.kill(os.getpid(), signal.SIGINT)


def end_experiment() -> None:
    """Ask Tune to end its loop in order; SIGUSR1 is the signal that Tune listens to."""
    os.kill(os.getpid(), signal.SIGUSR1)


@contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM request a stop and end Tune's loop; a second one ends the process at once."""

    def handle(number: int, frame: object) -> None:
        if stop.requested:
            os._exit(130)
        stop.requested = True
        end_experiment()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune listens
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
