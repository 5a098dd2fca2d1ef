"""What reports are handed: the frames, and the words that belong to them.

A report reads the lines of the leaderboard frame and the captions; where it shows single records it reads the frames
of scores and curves. It computes no number of its own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas

from harness.leaderboard import notes
from harness.leaderboard.columns import HERE
from harness.leaderboard.comparisons import Summary
from harness.leaderboard.notes import Note
from harness.leaderboard.variance import Variance


@dataclass(frozen=True)
class Block:
    """The lines of one block of the leaderboard, with the words that belong to them.

    lines      its lines of the leaderboard, as named tuples of plain values
    heading    dataset and backbone with what tells the block from others; `data` the dataset alone, and `unlike` the
               benchmark that its data are not though they have its name
    factors    the shared factors by name, as far as they are known
    caption    what its rows share; `findings` what to doubt, with the arms concerned
    metrics    all of them in order, `shown` those that tables print
    summaries  what holds for each metric, by its name
    """

    number: int
    dataset: str
    backbone: str
    lines: tuple[Any, ...]
    metrics: tuple[str, ...]
    shown: tuple[str, ...]
    summaries: Mapping[str, Summary]
    factors: Mapping[str, Any] = field(default_factory=dict)
    heading: str = ""
    data: str = ""
    unlike: str = ""
    caption: tuple[str, ...] = ()
    findings: tuple[Note, ...] = ()

    @cached_property
    def _by_row(self) -> dict[int, dict[str, Any]]:
        """{row: {metric: line}}"""
        found: dict[int, dict[str, Any]] = {}
        for line in self.lines:
            found.setdefault(line.row, {})[line.metric] = line
        return found

    @cached_property
    def rows(self) -> tuple[Any, ...]:
        """One line of each row measured here, for what its lines have in common."""
        return tuple(line for line in self._firsts if line.source == HERE)

    @cached_property
    def published(self) -> tuple[Any, ...]:
        """One line of each row that others published."""
        return tuple(line for line in self._firsts if line.source != HERE)

    @property
    def _firsts(self) -> Iterable[Any]:
        return (next(iter(of_row.values())) for of_row in self._by_row.values())

    def cell(self, row: Any, metric: str) -> Any | None:
        """The line of a row and metric; None where the row has no score in it."""
        line = self._by_row[row.row].get(metric)
        return None if line is None or line.mean is None else line

    def scored(self, row: Any) -> bool:
        """Whether the row has a score in any metric."""
        return any(line.mean is not None for line in self._by_row[row.row].values())

    @property
    def trained(self) -> tuple[Any, ...]:
        return tuple(row for row in self.rows if row.level != "floor")

    @property
    def floors(self) -> tuple[Any, ...]:
        return tuple(row for row in self.rows if row.level == "floor")

    @property
    def groups(self) -> tuple[tuple[Any, ...], ...]:
        """The trained rows, one tuple a loss, its baseline first."""
        groups: list[list[Any]] = []
        for row in self.trained:
            if row.baseline is None:
                groups.append([])
            groups[-1].append(row)
        return tuple(map(tuple, groups))

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences of the findings, those that say much the same of many rows in one."""
        return notes.condensed(self.findings)

    def of_rows(self, rows: Iterable[Any]) -> "Block":
        """The block with these of its rows alone, in the order of the table."""
        kept = {row.row for row in rows}
        return replace(self, lines=tuple(line for line in self.lines if line.row in kept))


@dataclass(frozen=True)
class Board:
    """A leaderboard ready to be shown.

    frame      the leaderboard; `scores` and `curves` the single records behind it, `absent` what has no record
    notes      what holds for all of it, beside the notes of its blocks
    partial    trials that should be there are not: `done` of `total` are
    variance   what moves the first metric over all blocks, where they make a grid
    commands   for the first record of each row the command that runs its trial again, and whether it is known to be
               the very trial
    gallery    pictures of what some arms retrieve, where a report has them
    """

    title: str
    frame: pandas.DataFrame
    scores: pandas.DataFrame
    absent: pandas.DataFrame
    curves: pandas.DataFrame
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    partial: bool
    done: int
    total: int
    variance: Variance | None = None
    commands: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    gallery: tuple[Any, ...] = ()


def record_ids(row: Any) -> list[str]:
    """Return the ids of the records behind a row, by seed and fold."""
    found = re.split(r" (?=\d+:)", row.records) if row.records else []  # an id may hold spaces
    return [one.partition(":")[2] for one in found]
