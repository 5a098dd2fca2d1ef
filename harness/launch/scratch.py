"""Folders in /tmp that exist while a process uses them. A later process removes those of a killed one.

Each process holds a lock (flock) on its folder, which the kernel releases when the process ends. Process ids are not
used: containers that share /tmp have their own.
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

PLACE = Path("/tmp")  # not $TMPDIR, which may be long: the path of a socket is limited to 107 bytes
# Older versions took no lock; their folder names have one more dash.
OURS = re.compile(r"metrix-(driver|head|ray|tune)-[a-z0-9_]+")


class Scratch(NamedTuple):
    """A folder and the descriptor of its lock. A child process that inherits the descriptor keeps the folder too."""

    folder: Path
    lock: int

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def make(kind: str) -> Scratch:
    """Return a new folder metrix-KIND-…, which `sweep` keeps while this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"metrix-{kind}-", dir=PLACE))
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # on storage without locks, nothing is swept
                fcntl.flock(lock, fcntl.LOCK_SH)
            if folder.exists():
                return Scratch(folder, lock)
            os.close(lock)


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """Yield a new folder and remove it on exit."""
    made = make(kind)
    try:
        yield made.folder
    finally:
        made.remove()


def sweep() -> None:
    """Remove the folders whose processes have ended."""
    for folder in PLACE.iterdir():
        if not OURS.fullmatch(folder.name):
            continue
        with suppress(OSError):  # it is in use, already removed, of another user, or on storage without locks
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
