"""Folders in /tmp for as long as a process uses them; what killed ones left is swept by a later one.

Whether one is in use the kernel says: each user holds a lock on it (flock), which ends with the process, however that
ends. Process numbers would not do, since containers that share /tmp each have numbers of their own.
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
OURS = re.compile(
    r"metrix-(driver|head|ray|tune)-[a-z0-9_]+"
)  # older versions locked nothing; theirs had one dash more


class Scratch(NamedTuple):
    """A folder, and the descriptor that keeps it from being swept; a child that inherits that keeps it as well."""

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
    """A new folder that is gone on leaving."""
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
