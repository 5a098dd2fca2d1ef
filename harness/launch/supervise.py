"""A driver on a cluster dies with the head that it is connected to; somebody must start it again.

Ray ends a driver's process when its head is lost. So on a cluster the command runs in a child process, and this one
only waits: where the child is gone without having said how it ended, it starts another, which continues.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.launch.scratch import scratch
from harness.runs.errors import RunError

REPORT = "METRIX_BENCH_REPORT"  # names the file in which a child says how it ended
BACK_WITHIN_S = 1800.0  # a head that is gone for longer is not waited for
PAUSE_S = 3.0
DEATHS = 100  # a driver that is lost so often is not lost with its head
INTERRUPTED = 130
PASSING = ("Unreachable", "StorageError")  # what a driver may meet that starts while things come back


class Unreachable(RunError):
    """There is no cluster at the address, or none yet."""


def known_run() -> str | None:
    """The identity of the run folder that the driver before this one worked in; None for a first one."""
    note = _note()
    return note.read_text(encoding="utf-8") if note is not None and note.exists() else None


def remember_run(identity: str) -> None:
    """Leave word for a driver after this one: while the folder is away it shall wait, not make another."""
    if (note := _note()) is not None:
        note.write_text(identity, encoding="utf-8")


def _note() -> Path | None:
    report = os.environ.get(REPORT)
    return Path(report).with_name("run.id") if report else None


def supervised(run: Callable[[], int], words: Sequence[str], address: str | None) -> int:
    """The exit code of `run`, here where `address` is None, and else of `metrix-bench WORDS` in child processes."""
    if address is None:
        return run()
    if REPORT in os.environ:
        return _reported(run, Path(os.environ[REPORT]))
    with scratch("driver") as folder:
        return _watched(words, folder / "report")


def _reported(run: Callable[[], int], report: Path) -> int:
    """Run, and leave word of how it ended."""
    try:
        code = run()
    except BaseException as error:
        report.write_text(type(error).__name__, encoding="utf-8")
        raise
    report.write_text("returned", encoding="utf-8")
    return code


def _watched(words: Sequence[str], report: Path) -> int:
    """Start children until one of them says how it ended."""
    child: subprocess.Popen | None = None
    stopped = False

    def pass_on(number, frame):
        nonlocal stopped
        stopped = True
        if child is not None and number == signal.SIGTERM:  # a terminal sends Ctrl-C to the child itself
            child.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        lost_at, deaths = None, 0
        while True:
            report.unlink(missing_ok=True)
            child = subprocess.Popen(
                [sys.executable, "-m", "harness.cli", *words], env={**os.environ, REPORT: str(report)}
            )
            code = child.wait()
            said = report.read_text(encoding="utf-8") if report.exists() else ""
            waits = said in PASSING and lost_at is not None and time.monotonic() - lost_at < BACK_WITHIN_S
            if not said:
                lost_at, deaths = time.monotonic(), deaths + 1
                print(f"the driver was lost (exit code {code}); it starts again once there is a cluster", flush=True)
            if stopped or (said and not waits) or deaths >= DEATHS:
                return code if code >= 0 else 128 - code
            time.sleep(PAUSE_S)
            if stopped:
                return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
