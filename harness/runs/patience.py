"""Waiting for storage that is full or unavailable, and for a run folder to come back.

Computing takes hours, a full disk minutes to clear: no write gives up at once (`patiently`). A share that is not
mounted looks like an empty folder, so a run folder carries an identity in the file `run.id`; whoever knows it waits
until the folder is that one again, and never makes it anew.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.runs.errors import StorageError, Vanished

T = TypeVar("T")

waiting: list[Callable[[], None]] = []  # called at each pause of a write that waits, by those who time this process

MARKER = "run.id"
PATIENCE_S = 600.0
LONGEST_PAUSE_S = 5.0

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
AWAY = {errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
AWAY |= {errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
AWAY_IN_WORDS = re.compile(  # pyarrow's errors of a bucket have no number
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|HTTP status 5\d\d"
)
NUMBER_IN_WORDS = re.compile(r"(?:\(os error |Os \{ code: )(\d+)")  # safetensors', of several versions


def patiently(attempt: Callable[[], T], place: Path | str, patience_s: float | None = None) -> T:
    """What `attempt` returns, tried again while the storage of `place` is full or away.

    It says once on stderr what it waits for. The pauses grow to LONGEST_PAUSE_S and in all reach `patience_s`
    (default: METRIX_BENCH_PATIENCE_S, or PATIENCE_S); then StorageError names the place. Other errors are raised at
    once. Before each attempt below a folder whose identity is known, the folder must be that one.
    """
    patience = longest_wait_s() if patience_s is None else patience_s
    began, pause, said = time.monotonic(), 0.1, False
    while True:
        try:
            require_here(place)
            return attempt()
        except Exception as error:
            if (missing := _waited_for(error, place)) is None:
                raise
            left = began + patience - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"waited {patience:.0f} s for {missing}: {error}. Nothing that was computed is lost: what is "
                    "there is whole, and the same command continues from it"
                ) from error
            if not said:
                print(f"waiting for {missing} ({error})", file=sys.stderr, flush=True)
                said = True
            for tell in waiting:
                tell()
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)


def longest_wait_s() -> float:
    """For how long writes wait, unless they are told otherwise."""
    return float(os.environ.get("METRIX_BENCH_PATIENCE_S", PATIENCE_S))


def _waited_for(error: Exception, place: Path | str) -> str | None:
    """What would have to happen for another attempt to succeed; None for an error that waiting does not fix."""
    if isinstance(error, Vanished):
        return f"{root_of(place)} to come back"
    number, words = getattr(error, "errno", None), str(error)
    if number is None and (found := NUMBER_IN_WORDS.search(words)):
        number = int(found.group(1))
    if number in NO_ROOM:
        return f"room on {place}"
    if number in AWAY or (isinstance(error, OSError) and AWAY_IN_WORDS.search(words)):
        return f"{place} to come back"
    if number == errno.ENOENT:  # taken away between the look and the write
        try:
            require_here(place)
        except OSError:
            return f"{root_of(place)} to come back"
    return None


_identities: dict[Path, str] = {}  # of the run folders that this process works in


def recognise(folder: Path, identity: str) -> None:
    """From now on, write below `folder` only while it is the run folder of this identity."""
    _identities[folder.absolute()] = identity


def forget(folder: Path) -> None:
    """Write below `folder` whatever it is."""
    _identities.pop(folder.absolute(), None)


def root_of(place: Path | str) -> Path | None:
    """The run folder around a path, where its identity is known."""
    if isinstance(place, str) or not _identities:
        return None
    path = place.absolute()
    return next((folder for folder in (path, *path.parents) if folder in _identities), None)


def require_here(place: Path | str) -> None:
    if (root := root_of(place)) is None:
        return
    try:
        found = (root / MARKER).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise Vanished(f"{root / MARKER} is not there") from None
    if found != _identities[root]:
        raise Vanished(f"{root} is another folder than the one that this run began in")
