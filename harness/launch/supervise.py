"""Restart a driver that died with the head of its cluster.

Ray ends a driver's process when its head is lost. So on a cluster the command runs in a child process, which reports
how it ended. If it dies without a report, this process starts another child, which continues the run.
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

REPORT = "METRIX_BENCH_REPORT"  # names the file in which a child reports how it ended
BACK_WITHIN_S = 1800.0  # for how long a lost head is waited for
PAUSE_S = 3.0
DEATHS = 100  # a driver that dies so often does not die with its head
INTERRUPTED = 130
TRANSIENT = ("Unreachable", "StorageError")  # errors that a driver may meet until head and storage are back


class Unreachable(RunError):
    """There is no cluster at the address, or none yet."""


def known_run() -> str | None:
    """Return the identity of the run folder of the driver before this one; None for the first driver."""
    note = _note()
    return note.read_text(encoding="utf-8") if note is not None and note.exists() else None


def remember_run(identity: str) -> None:
    """Note the identity of the run folder, so that a driver after this one waits for it instead of making another."""
    if (note := _note()) is not None:
        note.write_text(identity, encoding="utf-8")


def _note() -> Path | None:
    report = os.environ.get(REPORT)
    return Path(report).with_name("run.id") if report else None


def supervised(run: Callable[[], int], words: Sequence[str], address: str | None) -> int:
    """Return the exit code of `run`, called here (`address` None), or of `metrix-bench WORDS` in child processes."""
    if address is None:
        return run()
    if REPORT in os.environ:
        return _run_with_report(run, Path(os.environ[REPORT]))
    with scratch("driver") as folder:
        return _supervise(words, folder / "report")


def _run_with_report(run: Callable[[], int], report: Path) -> int:
    """Return the exit code of `run`, and report how it ended."""
    try:
        code = run()
    except BaseException as error:
        report.write_text(type(error).__name__, encoding="utf-8")
        raise
    report.write_text("returned", encoding="utf-8")
    return code


def _supervise(words: Sequence[str], report: Path) -> int:
    """Start children until one of them reports how it ended; return its exit code."""
    child: subprocess.Popen[bytes] | None = None
    stopped = False

    def forward(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        if child is not None and number == signal.SIGTERM:  # a terminal sends Ctrl-C to the child itself
            child.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        died_at, deaths = None, 0
        while True:
            report.unlink(missing_ok=True)
            child = subprocess.Popen(
                [sys.executable, "-m", "harness.cli", *words], env={**os.environ, REPORT: str(report)}
            )
            code = child.wait()
            ending = report.read_text(encoding="utf-8") if report.exists() else ""
            retrying = ending in TRANSIENT and died_at is not None and time.monotonic() - died_at < BACK_WITHIN_S
            if not ending:
                died_at, deaths = time.monotonic(), deaths + 1
                print(f"the driver died (exit code {code}); it will restart when the cluster is back", flush=True)
            if stopped or (ending and not retrying) or deaths >= DEATHS:
                return code if code >= 0 else 128 - code
            time.sleep(PAUSE_S)
            if stopped:
                return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
