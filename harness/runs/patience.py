"""Waiting for storage that is full or unavailable, and for a run folder that has disappeared.

Computing takes hours and clearing a disk minutes, so no write fails at once: `retry` repeats it. A share that is not
mounted looks like an empty folder. So a run folder has an identity, in the file `run.id`; once a process expects that
identity, it waits until the folder has it again and never creates another folder in its place.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.runs.errors import FolderGone, StorageError

T = TypeVar("T")

on_pause: list[Callable[[], None]] = []  # called at each pause of `retry`, for timers that must not count it

MARKER = "run.id"
LONGEST_WAIT_S = 600.0
LONGEST_PAUSE_S = 5.0

FULL = {errno.ENOSPC, errno.EDQUOT}
UNAVAILABLE = {
    *(errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
}
UNAVAILABLE_BUCKET = re.compile(  # pyarrow's errors of a bucket have no number
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|HTTP status 5\d\d"
)
NUMBER_IN_MESSAGE = re.compile(r"(?:\(os error |Os \{ code: )(\d+)")  # of several versions of safetensors


def retry(operation: Callable[[], T], place: Path | str, longest_s: float | None = None) -> T:
    """Return what `operation` returns, repeating it while the storage of `place` is full or unavailable.

    The reason is printed to stderr once. Pauses grow to LONGEST_PAUSE_S. After `longest_s` seconds (default:
    METRIX_BENCH_PATIENCE_S, or LONGEST_WAIT_S), raises StorageError; any other error is raised at once. Below a run
    folder whose identity is expected, the folder must have it before `operation` is called.
    """
    longest = longest_wait_s() if longest_s is None else longest_s
    began, pause, reported = time.monotonic(), 0.1, False
    while True:
        try:
            _require_identity(place)
            return operation()
        except Exception as error:
            if (condition := _awaited(error, place)) is None:
                raise
            left = began + longest - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"waited {longest:.0f} s for {condition}: {error}. No result is lost: run the same command "
                    "again to continue from what is stored"
                ) from error
            if not reported:
                print(f"waiting for {condition} ({error})", file=sys.stderr, flush=True)
                reported = True
            for callback in on_pause:
                callback()
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)


def longest_wait_s() -> float:
    """Return for how many seconds writes wait by default."""
    return float(os.environ.get("METRIX_BENCH_PATIENCE_S", LONGEST_WAIT_S))


def _awaited(error: Exception, place: Path | str) -> str | None:
    """Return what has to happen before a retry can succeed; None for an error that waiting does not fix."""
    if isinstance(error, FolderGone):
        return f"{run_folder_of(place)} to become available"
    number, message = getattr(error, "errno", None), str(error)
    if number is None and (match := NUMBER_IN_MESSAGE.search(message)):
        number = int(match.group(1))
    if number in FULL:
        return f"free space on {place}"
    if number in UNAVAILABLE or (isinstance(error, OSError) and UNAVAILABLE_BUCKET.search(message)):
        return f"{place} to become available"
    if number == errno.ENOENT:  # the folder disappeared between the check and the write
        try:
            _require_identity(place)
        except OSError:
            return f"{run_folder_of(place)} to become available"
    return None


_identities: dict[Path, str] = {}  # of the run folders in which this process works


def expect_identity(folder: Path, identity: str) -> None:
    """From now on, write below `folder` only while it is the run folder of this identity."""
    _identities[folder.absolute()] = identity


def forget_identity(folder: Path) -> None:
    """From now on, write below `folder` whatever its identity is."""
    _identities.pop(folder.absolute(), None)


def run_folder_of(place: Path | str) -> Path | None:
    """Return the run folder that contains a path; None if no identity is expected of one."""
    if isinstance(place, str) or not _identities:
        return None
    path = place.absolute()
    return next((folder for folder in (path, *path.parents) if folder in _identities), None)


def _require_identity(place: Path | str) -> None:
    """Raise FolderGone if the run folder that contains a path is missing or has another identity."""
    if (folder := run_folder_of(place)) is None:
        return
    try:
        identity = (folder / MARKER).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FolderGone(f"{folder / MARKER} is missing") from None
    if identity != _identities[folder]:
        raise FolderGone(f"{folder} is not the folder in which this run began")
