"""Folders in /tmp that exist while a process uses them. A later process removes those that a killed one left.

Each process holds a lock (flock) on its folder, which the kernel releases when the process ends. Process ids cannot
tell: containers that share /tmp have ids of their own.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

PLACE = Path("/tmp")  # not $TMPDIR, which may be long: a socket's path may not exceed 107 bytes
# Older versions locked nothing; the names of their folders have one more dash.
OURS = re.compile(r"metrix-(driver|head|ray|tune)-[a-z0-9_]+")


class Scratch(NamedTuple):
    """A folder and the descriptor of its lock. A child process that inherits the descriptor keeps the folder, too."""

    folder: Path
    lock: int

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def make(kind: str) -> Scratch:
    """A new folder metrix-KIND-…, which no sweep removes while this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"metrix-{kind}-", dir=PLACE))
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # where the storage knows no locks, nothing is swept
                fcntl.flock(lock, fcntl.LOCK_SH)
            if folder.exists():
                return Scratch(folder, lock)
            os.close(lock)


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """A new folder, removed on leaving."""
    made = make(kind)
    try:
        yield made.folder
    finally:
        made.remove()


def sweep() -> None:
    """Remove the folders that nobody uses any more."""
    for folder in PLACE.iterdir():
        if not OURS.fullmatch(folder.name):
            continue
        with suppress(OSError):  # it is in use, gone by now, somebody else's, or on storage that knows no locks
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
