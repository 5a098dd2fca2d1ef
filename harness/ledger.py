"""The ledger of test reads: who looked at the test split, with which weights, and whether that was the only look.

A model is chosen on validation and its test score is read once. Whoever reads the test for a second checkpoint of
the same cell has compared two test scores, and the row must say so. The ledger is a file of JSON lines that only
grows: each read is on disk before the test is read, so a crash in between leaves a read too many, never one too few.

It lies beside the records of its run folder and knows that folder alone: a read of the same test from another folder
is not in it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


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

    def read(self, cell: str, checkpoint: str, split: str, evaluator: str) -> Read:
        """Enter a read and say what it is; call it before the test is read. Safe between threads and processes.

        Raises ValueError for an empty argument; OSError where the file cannot be written: then leave the test alone.
        """
        entry = Entry(cell, checkpoint, split, evaluator, datetime.now(UTC).isoformat(timespec="seconds"))
        for name, value in asdict(entry).items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"ledger: {name} = {value!r}; expected a text that is not empty")
        with self._locked() as file:
            text = _contents(file)
            earlier, damaged = _parsed(text)
            line = json.dumps(asdict(entry), ensure_ascii=False) + "\n"
            cut_off = bool(text) and not text.endswith(b"\n")
            _append(file, ("\n" if cut_off else "").encode() + line.encode())
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
        return _parsed(self._bytes())[0]

    def damaged(self) -> tuple[int, ...]:
        """The numbers, from 1, of the lines that cannot be read."""
        return _parsed(self._bytes())[1]

    def read_again(self) -> dict[str, tuple[str, ...]]:
        """The cells whose test was read for more than one checkpoint, with those checkpoints in order."""
        by_cell: dict[str, dict[str, None]] = {}
        for entry in self.entries():
            by_cell.setdefault(entry.cell, {})[entry.checkpoint] = None
        return {cell: tuple(found) for cell, found in by_cell.items() if len(found) > 1}

    def _bytes(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """An open descriptor that only this caller holds; the kernel releases it when the process dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _contents(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _append(file: int, data: bytes) -> None:
    """Write to the end and wait for the disk; OSError where not all of it fitted."""
    written = os.write(file, data)
    if written != len(data):
        raise OSError(f"ledger: {written} of {len(data)} bytes written; is the disk full?")
    os.fsync(file)


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
