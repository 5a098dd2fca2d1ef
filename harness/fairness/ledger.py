"""The ledger of test reads: when the test split was read, for which weights, and whether it was the only read.

A model is chosen on validation, and its test score is read once. A read for a second checkpoint of the same cell
makes it possible to compare two test scores, so the row must be marked. The ledger is an append-only file of JSON
lines. Each read is on disk before the test is read, so a crash in between leaves a read too many, never one too few.

The ledger covers its own run folder only: reads of the same test from another folder are not in it. A bucket has no
files that can be appended to, so each read is an object under `ledger/`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.runs import files, patience

if TYPE_CHECKING:
    from harness.runs.run import Run


@dataclass(frozen=True)
class Entry:
    """One read: cell (dataset, backbone, arm, seed, fold), digests of weights, split and evaluator, time (UTC)."""

    cell: str
    checkpoint: str
    split: str
    evaluator: str
    at: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.cell, self.checkpoint, self.split, self.evaluator


@dataclass(frozen=True)
class Read:
    """A read of the test, compared with the earlier reads.

    first        there is no earlier read of this cell
    repeat       there is an earlier read with the same key: after a crash, or for a verification
    checkpoints  how many different checkpoints of this cell have read the test, including this one
    damaged      numbers of lines that cannot be read: a crash while writing leaves a truncated line
    """

    entry: Entry
    first: bool
    repeat: bool
    checkpoints: int
    damaged: tuple[int, ...]

    @property
    def counts_once(self) -> bool:
        """Whether only one checkpoint of the cell has read the test; otherwise the row must be marked."""
        return self.checkpoints == 1


class Ledger:
    """The test reads of one run folder, in the file `path` (created by the first read)."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @staticmethod
    def of(run: Run) -> Ledger:
        """Return the ledger of a run folder or bucket."""
        return Ledger(run.ledger) if run.is_folder else _ObjectLedger(run)

    def read(self, cell: str, checkpoint: str, split: str, evaluator: str) -> Read:
        """Enter a read and return how it compares with earlier ones; call it before the test is read.

        Safe between threads and processes. Raises ValueError for an empty argument; OSError or RunError if the read
        cannot be entered, in which case the test must not be read.
        """
        entry = Entry(cell, checkpoint, split, evaluator, datetime.now(UTC).isoformat(timespec="seconds"))
        for name, value in asdict(entry).items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"ledger: {name} = {value!r}; expected a non-empty text")
        earlier, damaged = self._enter(entry)
        same_cell = [old for old in earlier if old.cell == cell]
        return Read(
            entry,
            first=not same_cell,
            repeat=any(old.key == entry.key for old in same_cell),
            checkpoints=len({checkpoint, *(old.checkpoint for old in same_cell)}),
            damaged=damaged,
        )

    def entries(self) -> tuple[Entry, ...]:
        """Return all reads, oldest first, without damaged lines; empty if there is no file."""
        return self._parsed()[0]

    def damaged(self) -> tuple[int, ...]:
        """Return the numbers, from 1, of the lines that cannot be read."""
        return self._parsed()[1]

    def read_again(self) -> dict[str, tuple[str, ...]]:
        """Return the cells whose test was read for several checkpoints, with those checkpoints in order."""
        by_cell: dict[str, dict[str, None]] = {}
        for entry in self.entries():
            by_cell.setdefault(entry.cell, {})[entry.checkpoint] = None
        return {cell: tuple(checkpoints) for cell, checkpoints in by_cell.items() if len(checkpoints) > 1}

    def _enter(self, entry: Entry) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        """Append the read; return the earlier entries and the damaged lines. If it fails, no part of it remains."""

        def append() -> bytes:
            with self._locked() as file:
                text = _contents(file)
                truncated = bool(text) and not text.endswith(b"\n")
                _append(file, ("\n" if truncated else "").encode() + _line(entry))
            return text

        return _parsed(patience.retry(append, self.path))

    def _parsed(self) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        return _parsed(self.path.read_bytes() if self.path.exists() else b"")

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Yield an open descriptor under an exclusive lock, which the kernel releases when the process dies."""
        files.make_folder(self.path.parent)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _contents(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _append(file: int, data: bytes) -> None:
    """Append and flush to the disk. Raises OSError if not all of it fits, and then removes the part that did."""
    before = os.fstat(file).st_size
    try:
        if (written := os.write(file, data)) != len(data):
            raise OSError(errno.ENOSPC, f"ledger: {written} of {len(data)} bytes written")
        os.fsync(file)
    except OSError:
        os.ftruncate(file, before)
        raise


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n"


class _ObjectLedger(Ledger):
    """The test reads of a run in a bucket, one object each; names of objects begin with the digest of their cell.

    A read is stored before the others are listed, so of two simultaneous reads at least one sees the other.
    """

    def __init__(self, run: Run):
        super().__init__(run.folder / "ledger")
        self._run = run

    def _enter(self, entry: Entry) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        cell = hashlib.sha256(entry.cell.encode()).hexdigest()[:16]
        own = self.path / f"{cell}-{time.time_ns()}-{secrets.token_hex(4)}.json"
        files.put(own, lambda aside: aside.write_bytes(_line(entry)))
        self._run.push(own)
        return self._parsed(f"{cell}-", without=own)

    def _parsed(self, prefix: str = "", without: Path | None = None) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        paths = [path for path in self._run.pull_all(self.path, prefix) if path != without]
        texts = sorted((path.read_bytes().rstrip(b"\n") for path in paths), key=_when)
        return _parsed(b"\n".join(texts))


def _when(line: bytes) -> str:
    """Return the time of the read in a line; empty if it cannot be read."""
    entries, _ = _parsed(line)
    return entries[0].at if entries else ""


def _parsed(text: bytes) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
    """Return the entries, and the numbers of the lines that cannot be read."""
    entries, damaged = [], []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError):
            damaged.append(number)
    return tuple(entries), tuple(damaged)
