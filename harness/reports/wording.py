"""How every report and the terminal print a number: percent, points, ratios, seconds, seeds.

A `row` is a line of the leaderboard read for what its row has in common, a `cell` one read for its metric.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.config import LEVELS

if TYPE_CHECKING:  # at run time it would import pandas, which most commands do without
    from harness.leaderboard.board import Block, Board

BEST, SECOND = "best", "second"
MISSING = "--"
DAGGER = "†"
BELOW = "‡"
INFLATION = (
    "Inflation: best test epoch minus last epoch of the same run, in {} points, where the protocol records it."
)
STATES = {"fail": "fail", "--": MISSING, "n/a": "n/a"}


def full(row: Any) -> str:
    """The name of a row where it does not stand under its loss: the arm, and its step sizes where several have it."""
    return row.baseline + row.name if row.baseline else row.name


def title(row: Any) -> str:
    """A row as a paper names it: `Multi-similarity`, `+ Metrix, input [weight=0.2]`, or as it is written."""
    level = row.level
    if row.baseline and row.name.startswith(f"+{level}"):
        return f"+ Metrix, {level} {row.name[len(level) + 1 :]}".strip()
    return row.name if row.baseline else arm_title(row.name)


def arm_title(arm: str) -> str:
    """An arm as a paper names it: `Multi-similarity + Metrix, input`; published methods keep their own word."""
    loss, sign, level = arm.partition("+")
    word = re.sub(r"\W.*", "", loss, flags=re.DOTALL)
    rest = loss.removeprefix(word)
    known = _title(word) + (f" {rest.strip()}" if rest else "")
    metrix = "Metrix, " if level.partition("[")[0] in LEVELS else ""
    return f"{known} + {metrix}{level}" if sign else known


@functools.cache
def _title(loss: str) -> str:
    """The title of a loss, or its name where no such loss is registered."""
    try:
        return registry.loss(loss).title
    except ValueError:
        return loss


def below(row: Any) -> str:
    """What stands behind the name of a row that training left below its own starting point: ‡, or nothing."""
    return BELOW * bool(row.below_start)


def counterparts(block: Block) -> Iterator[tuple[Any, Any]]:
    """Published rows with the row here that is the same arm at default settings."""
    rows = {row.arm: row for row in block.rows if block.scored(row)}
    for theirs in block.published:
        if theirs.arm in rows:
            yield theirs, rows[theirs.arm]


def inflation(cell: Any | None) -> str:
    """`0.8 (n = 5)`: best test epoch minus the reported one, in points, of records that know it; `--` of none."""
    if cell is None or cell.inflation is None:
        return MISSING
    return f"{100 * cell.inflation:.1f} (n = {cell.inflation_n})"


def progress(board: Board) -> str:
    """`36 trials` or `partial: 23 of 36 trials`."""
    if board.done == board.total and not board.partial:
        return f"{board.total} trial{'s' * (board.total != 1)}"
    return f"partial: {board.done} of {board.total} trials"


def decimals(block: Block, metric: str) -> int:
    """Digits after the point for a metric in percent: one, or two where an interval would print as ± 0.0."""
    cells = [cell for row in block.trained if (cell := block.cell(row, metric))]
    halves = [half for cell in cells for half in (cell.half, cell.difference_half) if half]
    return 2 if halves and min(halves) < 0.0005 else 1


def score(cell: Any, digits: int = 1) -> str:
    """`48.3 ± 0.6`, percent; without an interval `48.3`."""
    return f"{100 * cell.mean:.{digits}f}" + _plus_minus(cell.half, digits)


def difference(cell: Any, digits: int = 1) -> str:
    """`+1.2 ± 0.8`, points; empty where there is no baseline to differ from."""
    if cell.difference is None:
        return ""
    number = f"{100 * cell.difference:+z.{digits}f}".replace("-", "−")
    return number + _plus_minus(cell.difference_half, digits) + DAGGER * bool(cell.significant)


def _plus_minus(half: float | None, digits: int) -> str:
    return "" if half is None else f" ± {100 * half:.{digits}f}"


def time(row: Any) -> str:
    """A baseline's seconds, a variant's ratio to it."""
    if row.baseline and row.relative_time is not None:
        return ratio(row.relative_time)
    return "" if row.train_s is None else seconds(row.train_s)


def passes(row: Any) -> str:
    """Forward passes a step relative to the own baseline, which is 1."""
    if row.relative_passes is not None:
        return ratio(row.relative_passes)
    return "" if row.baseline or row.forward_passes_per_step is None else ratio(1.0)


def ratio(value: float) -> str:
    """`1.18×`"""
    return f"{value:.2f}×"


def seconds(value: float) -> str:
    """`0.4 s`, `24 s`, `3.2 min`, `1.4 h`: two figures are enough to compare."""
    if value < 99.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5970 else f"{value / 3600:.1f} h"


def count(row: Any) -> int:
    """How many training seeds of a row have a record."""
    return len((row.seeds or "").split())


def seeds(row: Any) -> str:
    """The number of seeds measured, `2/3` while some are missing; nothing where none is expected."""
    if not row.expected_n:
        return ""
    return str(count(row)) if count(row) == row.expected_n else f"{count(row)}/{row.expected_n}"


def columns(block: Block) -> tuple[str, ...]:
    """The headings that go with `values`."""
    return (*(name for metric in block.shown for name in (metric, f"Δ {metric}")), "time", "passes", "n")


def state(row: Any) -> str:
    """What stands in place of a score: fail, n/a or --."""
    return STATES.get(row.state, MISSING)


def values(block: Block, row: Any) -> Sequence[str]:
    """What a row prints under `columns`; a row without a score shows its state instead."""
    if not block.scored(row):
        blank = [""] * (2 * len(block.shown) + 2)
        return [state(row), *blank[1:], seeds(row)]
    printed = []
    for metric in block.shown:
        cell = block.cell(row, metric)
        digits = decimals(block, metric)
        printed += [score(cell, digits), difference(cell, digits)] if cell else [MISSING, ""]
    return [*printed, time(row), passes(row), seeds(row)]


def marks(block: Block, row: Any) -> Sequence[tuple[str, ...]]:
    """What marks the values of a row (best, second), one tuple a column; differences carry their dagger."""
    printed: list[tuple[str, ...]] = []
    for metric in block.shown:
        cell = block.cell(row, metric)
        printed += [tuple(mark for mark in (BEST, SECOND) if cell and getattr(cell, mark)), ()]
    return [*printed, (), (), ()]


def footnotes(block: Block) -> list[str]:
    """The notes of a block, then why rows of it are not complete, for formats without room beside them."""
    return [*block.notes, *(f"{row.arm}: {row.state}, {row.reason}." for row in block.rows if row.reason)]
