"""Files that are written whole or not at all, and what dead writers left of them."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from harness.data.cache import flush
from harness.runs.patience import patiently, root_of
from harness.runs.process import alive, numbering

SCRATCH_AGE_S = 3600.0


def make(folder: Path) -> None:
    """Make a folder and those above it, but no run folder anew: below a mount point that would be the wrong disk."""
    root = root_of(folder)
    if root is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    steps = folder.absolute().relative_to(root).parts
    for depth in range(len(steps)):
        root.joinpath(*steps[: depth + 1]).mkdir(exist_ok=True)


def put(path: Path, write: Callable[[Path], object], patience_s: float | None = None) -> None:
    """Have `write` fill a scratch file, flush it to the disk and rename it to `path`, waiting where it must.

    Readers see all of it or nothing, and until then what was there before. StorageError after `patience_s`.
    """

    def attempt() -> None:
        make(path.parent)
        aside = scratch(path)
        try:
            write(aside)
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    patiently(attempt, path, patience_s)


_numbers = count()
SCRATCH = re.compile(r"\..*\.(?P<host>[^/]+)-(?P<pid>\d+)-\d+\.part")


def scratch(path: Path) -> Path:
    """A hidden name beside `path` that no other writer has, on this machine or another. Names may be long: cut."""
    return path.with_name(f".{path.name[:80]}.{numbering()}-{os.getpid()}-{next(_numbers)}.part")


def sweep(folder: Path, ended: bool = False, older_than_s: float = SCRATCH_AGE_S) -> int:
    """Remove what dead writers left below `folder`; how many files that were.

    Of writers whose process numbers are seen here, those that are gone; of others, all where the run has `ended`,
    else those not touched for `older_than_s` by the storage's own clock (machines' clocks differ).
    """
    left = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names if SCRATCH.fullmatch(name)]
    now = clock(folder) if left else 0.0
    removed = 0
    for path in left:
        writer = SCRATCH.fullmatch(path.name)
        try:
            if writer["host"] == numbering():
                dead = not alive(int(writer["pid"]))
            else:
                dead = ended or now - path.stat().st_mtime > older_than_s
            if dead:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # its writer was alive after all, and has finished
            continue
    return removed


def clock(folder: Path) -> float:
    """The time as the storage stamps it."""
    probe = scratch(folder / "probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
