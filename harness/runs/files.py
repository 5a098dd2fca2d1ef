"""Atomic writes, and the scratch files that killed processes leave behind."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from harness.data.cache import flush
from harness.runs.patience import retry, run_folder_of
from harness.runs.process import alive, namespace

SCRATCH = re.compile(r"\..*\.(?P<host>[^/]+)-(?P<pid>\d+)-\d+\.part")
SCRATCH_AGE_S = 3600.0
_numbers = count()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, but no run folder: below a mount point it would be on the wrong disk."""
    root = run_folder_of(folder)
    if root is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    parts = folder.absolute().relative_to(root).parts
    for depth in range(len(parts)):
        root.joinpath(*parts[: depth + 1]).mkdir(exist_ok=True)


def put(path: Path, write: Callable[[Path], object], longest_s: float | None = None) -> None:
    """Have `write` fill a scratch file, flush it to the disk and rename it to `path`, with `patience.retry`.

    Readers see the old content or all of the new. Raises StorageError after `longest_s` seconds.
    """

    def replace() -> None:
        make_folder(path.parent)
        aside = scratch_path(path)
        try:
            write(aside)
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    retry(replace, path, longest_s)


def scratch_path(path: Path) -> Path:
    """Return a hidden path beside `path` that no other writer uses, on any machine. Long names are cut."""
    return path.with_name(f".{path.name[:80]}.{namespace()}-{os.getpid()}-{next(_numbers)}.part")


def remove_scratch(folder: Path, ended: bool = False, older_than_s: float = SCRATCH_AGE_S) -> int:
    """Remove the scratch files that killed processes left below `folder`; return how many.

    The scratch file of a process in this namespace is removed once the process is gone. Any other is removed if the
    run has `ended`, or if it was not touched for `older_than_s` seconds by the clock of the storage.
    """
    scratch = [
        (Path(parent, name), writer)
        for parent, _, names in os.walk(folder)
        for name in names
        if (writer := SCRATCH.fullmatch(name))
    ]
    now = storage_time(folder) if scratch else 0.0
    removed = 0
    for path, writer in scratch:
        try:
            if writer["host"] == namespace():
                dead = not alive(int(writer["pid"]))
            else:
                dead = ended or now - path.stat().st_mtime > older_than_s
            if dead:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # its writer was alive after all, and has finished
            continue
    return removed


def storage_time(folder: Path) -> float:
    """Return the time by the clock of the storage, in seconds since the epoch: machines' clocks differ."""
    probe = scratch_path(folder / "probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
