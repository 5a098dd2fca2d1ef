"""The ledger of test reads: who looked at the test split, with which weights, and whether that was the only look.

A model is chosen on validation and its test score is read once. Whoever reads the test for a second checkpoint of
the same cell has compared two test scores, and the row must say so. The ledger is a file of JSON lines that only
grows: each read is on disk before the test is read, so a crash in between leaves a read too many, never one too few.

It lies beside the records of its run folder and knows that folder alone: a read of the same test from another folder
is not in it. A bucket has no file that grows: there each read is an object of its own, under `ledger/`.
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
    """One line: the cell (dataset, backbone, arm, seed, fold), digests of weights, split, evaluator; when (UTC)."""

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
    """What the ledger knows about one read of the test.

    first        no read of this cell came before it
    repeat       the very same key was read before: a crash, or a verification
    checkpoints  how many different checkpoints of this cell have read the test, this one included
    damaged      the ledger's line numbers that could not be read: a crash while writing leaves a cut-off line
    """

    entry: Entry
    first: bool
    repeat: bool
    checkpoints: int
    damaged: tuple[int, ...]

    @property
    def counts_once(self) -> bool:
        """Whether only one checkpoint of the cell has seen the test; if not, the row must be marked."""
        return self.checkpoints == 1


class Ledger:
    """The test reads of one run folder, in the file `path` (made with its folder at the first read)."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @staticmethod
    def of(run: Run) -> Ledger:
        """The ledger of a run folder, or of a bucket."""
        return Ledger(run.ledger) if run.is_folder else _ObjectLedger(run)

    def read(self, cell: str, checkpoint: str, split: str, evaluator: str) -> Read:
        """Enter a read and say what it is; call it before the test is read. Safe between threads and processes.

        Raises ValueError for an empty argument; OSError or RunError where it cannot be entered: then leave
        the test alone.
        """
        entry = Entry(cell, checkpoint, split, evaluator, datetime.now(UTC).isoformat(timespec="seconds"))
        for name, value in asdict(entry).items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"ledger: {name} = {value!r}; expected a text that is not empty")
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
        """All reads so far, oldest first, without damaged lines; empty where there is no file."""
        return self._parsed()[0]

    def damaged(self) -> tuple[int, ...]:
        """The numbers, from 1, of the lines that cannot be read."""
        return self._parsed()[1]

    def read_again(self) -> dict[str, tuple[str, ...]]:
        """The cells whose test was read for more than one checkpoint, with those checkpoints in order."""
        by_cell: dict[str, dict[str, None]] = {}
        for entry in self.entries():
            by_cell.setdefault(entry.cell, {})[entry.checkpoint] = None
        return {cell: tuple(found) for cell, found in by_cell.items() if len(found) > 1}

    def _enter(self, entry: Entry) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        """Append the line, and what stood there before it; where that fails, no part of it stays."""

        def attempt() -> bytes:
            with self._locked() as file:
                text = _contents(file)
                cut_off = bool(text) and not text.endswith(b"\n")
                _append(file, ("\n" if cut_off else "").encode() + _line(entry))
            return text

        return _parsed(patience.retry(attempt, self.path))

    def _parsed(self) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        return _parsed(self.path.read_bytes() if self.path.exists() else b"")

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """An open descriptor that only this caller holds; the kernel releases it when the process dies."""
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
    """Write to the end and wait for the disk; OSError where not all of it fitted, and then none of it is there."""
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
    """The test reads of a run in a bucket, one object each; the objects of a cell begin with its digest.

    A read is stored before the others are listed, so of two at once at least one sees the other.
    """

    def __init__(self, run: Run):
        super().__init__(run.folder / "ledger")
        self._run = run

    def _enter(self, entry: Entry) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        cell = hashlib.sha256(entry.cell.encode()).hexdigest()[:16]
        mine = self.path / f"{cell}-{time.time_ns()}-{secrets.token_hex(4)}.json"
        files.put(mine, lambda aside: aside.write_bytes(_line(entry)))
        self._run.push(mine)
        return self._parsed(f"{cell}-", without=mine)

    def _parsed(self, prefix: str = "", without: Path | None = None) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        paths = [path for path in self._run.pull_all(self.path, prefix) if path != without]
        texts = sorted((path.read_bytes().rstrip(b"\n") for path in paths), key=_when)
        return _parsed(b"\n".join(texts))


def _when(line: bytes) -> str:
    """When the read of a line was, as far as it says so."""
    entries, _ = _parsed(line)
    return entries[0].at if entries else ""


def _parsed(text: bytes) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
    """The entries, and the numbers of the lines that are none."""
    entries, damaged = [], []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError):
            damaged.append(number)
    return tuple(entries), tuple(damaged)
