"""Number formats shared by every report and the terminal: percent, points, ratios, seconds, seeds.

A `row` is any line of a row of the leaderboard; only columns that do not depend on the metric are read from it. A
`cell` is the line of one row and metric.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness import registry

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
    """Return the full name of a row, with the loss, and the step sizes if several rows share the arm."""
    return row.baseline + row.name if row.baseline else row.name


def title(row: Any) -> str:
    """Return the name of a row in paper style: `Multi-similarity`, `+ Metrix, input [weight=0.2]`, `+ MoCHi`."""
    return _levels(row.name).strip() if row.baseline else arm_title(row.name)


def arm_title(arm: str) -> str:
    """Return an arm in paper style: `Multi-similarity + Metrix, input`. Published methods keep their own words."""
    parts = re.fullmatch(r"(\w*)((?:\[[^\]]*\]|[^+])*)(.*)", arm, re.DOTALL)
    assert parts is not None  # each part may be empty
    word, rest, levels = parts.groups()
    return _title(word) + (f" {rest.strip()}" if rest else "") + _levels(levels)


def _levels(text: str) -> str:
    """Return levels in paper style: ` + XBM [size=8] + Metrix, embedding` of `+xbm[size=8]+embedding`."""
    parts = re.findall(r"(\[[^\]]*\])|\+([\w-]+)|([^+\[]+)", text)
    return "".join(
        f" {options}" if options else f" + {level_title(level)}" if level else rest for options, level, rest in parts
    )


def level_title(level: str) -> str:
    """Return the title of a level, `Metrix, input` or `MoCHi`; its own word if it is not registered."""
    name = level.replace("-", "_")
    return registry.level(name).title if name in registry.levels() else level


@functools.cache
def _title(loss: str) -> str:
    """Return the title of a loss, or its name if it is not registered."""
    try:
        return registry.loss(loss).title
    except ValueError:
        return loss


def below(row: Any) -> str:
    """Return ‡ for a row that ended below its own starting point, "" otherwise."""
    return BELOW * bool(row.below_start)


def counterparts(block: Block) -> Iterator[tuple[Any, Any]]:
    """Yield each published row with our row of the same arm at default settings."""
    rows = {row.arm: row for row in block.rows if block.scored(row)}
    for published_row in block.published:
        if published_row.arm in rows:
            yield published_row, rows[published_row.arm]


def inflation(cell: Any | None) -> str:
    """Return `0.8 (n = 5)`: best test epoch minus the reported one, in points; `--` if no record has it."""
    if cell is None or cell.inflation is None:
        return MISSING
    return f"{100 * cell.inflation:.1f} (n = {cell.inflation_n})"


def progress(board: Board) -> str:
    """Return `36 trials` or `partial: 23 of 36 trials`."""
    if board.done == board.total and not board.partial:
        return f"{board.total} trial{'s' * (board.total != 1)}"
    return f"partial: {board.done} of {board.total} trials"


def decimals(block: Block, metric: str) -> int:
    """Return the decimals for a metric in percent: one, or two if an interval would print as ± 0.0."""
    cells = [cell for row in block.trained if (cell := block.cell(row, metric))]
    halves = [half for cell in cells for half in (cell.half, cell.difference_half) if half]
    return 2 if halves and min(halves) < 0.0005 else 1


def score(cell: Any, digits: int = 1) -> str:
    """Return `48.3 ± 0.6` in percent; without an interval `48.3`."""
    return f"{100 * cell.mean:.{digits}f}" + _plus_minus(cell.half, digits)


def difference(cell: Any, digits: int = 1) -> str:
    """Return `+1.2 ± 0.8` in points; "" without a baseline."""
    if cell.difference is None:
        return ""
    number = f"{100 * cell.difference:+z.{digits}f}".replace("-", "−")
    return number + _plus_minus(cell.difference_half, digits) + DAGGER * bool(cell.significant)


def _plus_minus(half: float | None, digits: int) -> str:
    return "" if half is None else f" ± {100 * half:.{digits}f}"


def time(row: Any) -> str:
    """Return the training time of a baseline, or the ratio of a variant to its baseline."""
    if row.baseline and row.relative_time is not None:
        return ratio(row.relative_time)
    return "" if row.train_s is None else seconds(row.train_s)


def passes(row: Any) -> str:
    """Return the forward passes per step relative to the row's own baseline, which is 1."""
    if row.relative_passes is not None:
        return ratio(row.relative_passes)
    return "" if row.baseline or row.forward_passes_per_step is None else ratio(1.0)


def ratio(value: float) -> str:
    """Return a ratio such as `1.18×`."""
    return f"{value:.2f}×"


def seconds(value: float) -> str:
    """Return a duration such as `0.4 s`, `24 s`, `3.2 min` or `1.4 h`."""
    if value < 99.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5970 else f"{value / 3600:.1f} h"


def count(row: Any) -> int:
    """Return how many training seeds of a row have a record."""
    return len((row.seeds or "").split())


def seeds(row: Any) -> str:
    """Return the number of measured seeds, `2/3` if some are missing; "" if none is expected."""
    if not row.expected_n:
        return ""
    return str(count(row)) if count(row) == row.expected_n else f"{count(row)}/{row.expected_n}"


def columns(block: Block) -> tuple[str, ...]:
    """Return the headings of `values`."""
    return (*(name for metric in block.shown for name in (metric, f"Δ {metric}")), "time", "passes", "n")


def state(row: Any) -> str:
    """Return what is printed instead of a score: fail, n/a or --."""
    return STATES.get(row.state, MISSING)


def values(block: Block, row: Any) -> Sequence[str]:
    """Return the values of a row for `columns`. A row without a score shows its state instead."""
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
    """Return the marks of the values of a row (best, second), one tuple per column. Daggers are in the values."""
    printed: list[tuple[str, ...]] = []
    for metric in block.shown:
        cell = block.cell(row, metric)
        printed += [tuple(mark for mark in (BEST, SECOND) if cell and getattr(cell, mark)), ()]
    return [*printed, (), (), ()]


def footnotes(block: Block) -> list[str]:
    """Return the notes of a block, then the reasons of incomplete rows, for formats that print them as footnotes."""
    return [*block.notes, *(f"{row.arm}: {row.state}, {row.reason}." for row in block.rows if row.reason)]
