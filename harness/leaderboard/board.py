"""The input of every report: the frames, and the text that belongs to them.

A report reads the lines of the leaderboard frame and the captions. To show single records, it reads the frames of
scores and curves. It computes no numbers itself.
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
    """The lines of one block of the leaderboard, with its text.

    lines      the lines of the leaderboard, as named tuples of plain values
    heading    dataset and backbone, with the factors that distinguish the block from others
    data       the dataset, as a caption names it
    unlike     the benchmark that the data do not match despite their name; "" if they match
    factors    the known shared factors by name
    caption    sentences on what the rows share
    findings   warnings, with the arms they concern
    metrics    all metrics in order
    shown      the metrics that tables print
    summaries  the summary of each metric, by its name
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
        """The lines as {row: {metric: line}}."""
        by_row: dict[int, dict[str, Any]] = {}
        for line in self.lines:
            by_row.setdefault(line.row, {})[line.metric] = line
        return by_row

    @cached_property
    def rows(self) -> tuple[Any, ...]:
        """One line of each row measured here. Use it for columns that do not depend on the metric."""
        return tuple(line for line in self._firsts if line.source == HERE)

    @cached_property
    def published(self) -> tuple[Any, ...]:
        """One line of each published row."""
        return tuple(line for line in self._firsts if line.source != HERE)

    @property
    def _firsts(self) -> Iterable[Any]:
        return (next(iter(by_metric.values())) for by_metric in self._by_row.values())

    def cell(self, row: Any, metric: str) -> Any | None:
        """Return the line of a row and metric; None if the row has no score in that metric."""
        line = self._by_row[row.row].get(metric)
        return None if line is None or line.mean is None else line

    def scored(self, row: Any) -> bool:
        """Return whether the row has a score in any metric."""
        return any(line.mean is not None for line in self._by_row[row.row].values())

    @property
    def trained(self) -> tuple[Any, ...]:
        return tuple(row for row in self.rows if row.level != "floor")

    @property
    def floors(self) -> tuple[Any, ...]:
        return tuple(row for row in self.rows if row.level == "floor")

    @property
    def groups(self) -> tuple[tuple[Any, ...], ...]:
        """The trained rows: one tuple per loss, its baseline first."""
        groups: list[list[Any]] = []
        for row in self.trained:
            if row.baseline is None:
                groups.append([])
            groups[-1].append(row)
        return tuple(map(tuple, groups))

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences of the findings; similar findings about many rows are merged."""
        return notes.condensed(self.findings)

    def of_rows(self, rows: Iterable[Any]) -> "Block":
        """Return the block with only these rows, in table order."""
        numbers = {row.row for row in rows}
        return replace(self, lines=tuple(line for line in self.lines if line.row in numbers))


@dataclass(frozen=True)
class Board:
    """A leaderboard that is ready for reports.

    frame      the leaderboard
    scores     the scores of the single records
    curves     the learning curves of the single records
    absent     the trials without a record
    notes      notes on the whole board; each block has its own notes as well
    partial    whether trials are missing: only `done` of `total` have a record
    variance   the sources of variance of the first metric over all blocks; None unless the blocks form a grid
    commands   the command that reruns the first record of each row, and whether it is known to give the same trial
    gallery    the image gallery of each block; empty if the report has none
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
    pairs = re.split(r" (?=\d+:)", row.records) if row.records else []  # an id may hold spaces
    return [pair.partition(":")[2] for pair in pairs]
