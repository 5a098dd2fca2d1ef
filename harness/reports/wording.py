"""How every report and the terminal print a number: percent, points, ratios, seconds, seeds."""

import functools
import re
from collections.abc import Iterator, Sequence

from harness import registry
from harness.config import LEVELS
from harness.fairness.rules import data as data_rules
from harness.leaderboard.comparisons import BEST, SECOND
from harness.leaderboard.published import Published
from harness.leaderboard.tables import Block, Cell, Leaderboard, Row

MISSING = "--"
DAGGER = "†"
BELOW = "‡"
INFLATION = (
    "Inflation: best test epoch minus last epoch of the same run, in points of {}, where the protocol records it."
)
STATES = {"fail": "fail", "--": MISSING, "n/a": "n/a"}


def heading(block: Block) -> str:
    """`glyphs · test_resnet`, with the factors that tell it from its neighbours: `(model.dim = 128)`."""
    factors = ", ".join(f"{name} = {_short(value)}" for name, value in block.factors)
    return f"{data(block)} · {_network(block)}" + (f" ({factors})" if factors else "")


def data(block: Block) -> str:
    """`cub200`, or `cub200, not CUB-200-2011` where the copy has not the counts of that benchmark (FAIR-01)."""
    return ", ".join([block.dataset, *unlike(block)])


def unlike(block: Block) -> list[str]:
    """The benchmark that the block's data are not though they have its name, `not CUB-200-2011`; mostly nothing."""
    return sorted({data_rules.unlike(record) for row in block.rows for record in row.parts} - {""})


def _network(block: Block) -> str:
    """The backbone, with the tag of published weights only where they were loaded."""
    loaded = {record.trial.backbone.pretrained is True for row in block.rows for record in row.parts}
    return block.backbone.partition(".")[0] if loaded == {False} else block.backbone


def _short(value: object) -> str:
    """A factor's value; of a fingerprint the first twelve digits."""
    text = str(value)
    return text[:12] if len(text) >= 40 and text.isalnum() else text


def title(row: Row) -> str:
    """A row as a paper names it: `Multi-similarity`, `+ Metrix, input [weight=0.2]`, or as it is written."""
    level = row.level
    if row.indent and row.name.startswith(f"+{level}"):
        return f"+ Metrix, {level} {row.name[len(level) + 1 :]}".strip()
    return row.name if row.indent else arm_title(row.name)


def arm_title(arm: str) -> str:
    """An arm as a paper names it: `Multi-similarity + Metrix, input`; published methods keep their own word."""
    loss, sign, level = arm.partition("+")
    word, rest = re.match(r"(\w*)(.*)", loss, re.DOTALL).groups()
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


def below(block: Block, row: Row) -> str:
    """What stands behind the name of a row that training left below its own starting point: ‡, or nothing."""
    return BELOW * (row.arm in block.below)


def counterparts(block: Block) -> Iterator[tuple[Published, Row]]:
    """Published rows with the row here that is the same arm at default settings."""
    rows = {row.arm: row for row in block.rows if row.cells}
    for theirs in block.published:
        if theirs.arm in rows:
            yield theirs, rows[theirs.arm]


def inflation(row: Row, metric: str) -> str:
    """`0.8 (n = 5)`: best test epoch minus the reported one, in points, of records that know it; `--` of none."""
    known = [
        record.best_test_epoch[metric] - record.test[metric]
        for record in row.records
        if record.best_test_epoch and metric in record.best_test_epoch and metric in record.test
    ]
    return f"{100 * sum(known) / len(known):.1f} (n = {len(known)})" if known else MISSING


def progress(leaderboard: Leaderboard) -> str:
    """`36 trials` or `partial: 23 of 36 trials`."""
    if leaderboard.done == leaderboard.total and not leaderboard.partial:
        return f"{leaderboard.total} trial{'s' * (leaderboard.total != 1)}"
    return f"partial: {leaderboard.done} of {leaderboard.total} trials"


def decimals(block: Block, metric: str) -> int:
    """Digits after the point for a metric in percent: one, or two where an interval would print as ± 0.0."""
    halves = [
        half
        for row in block.trained
        if (cell := row.cells.get(metric))
        for half in (cell.half, cell.difference_half)
        if half
    ]
    return 2 if halves and min(halves) < 0.0005 else 1


def score(cell: Cell, digits: int = 1) -> str:
    """`48.3 ± 0.6`, percent; without an interval `48.3`."""
    return f"{100 * cell.mean:.{digits}f}" + _plus_minus(cell.half, digits)


def difference(cell: Cell, digits: int = 1) -> str:
    """`+1.2 ± 0.8`, points; empty where there is no baseline to differ from."""
    if cell.difference is None:
        return ""
    number = f"{100 * cell.difference:+z.{digits}f}".replace("-", "−")
    return number + _plus_minus(cell.difference_half, digits) + DAGGER * cell.significant


def _plus_minus(half: float | None, digits: int) -> str:
    return "" if half is None else f" ± {100 * half:.{digits}f}"


def time(row: Row) -> str:
    """A baseline's seconds, a variant's ratio to it."""
    if row.indent and row.relative_time is not None:
        return ratio(row.relative_time)
    return "" if row.train_s is None else seconds(row.train_s)


def passes(row: Row) -> str:
    """Forward passes a step relative to the own baseline, which is 1."""
    if row.relative_passes is not None:
        return ratio(row.relative_passes)
    return "" if row.indent or row.passes is None else ratio(1.0)


def ratio(value: float) -> str:
    """`1.18×`"""
    return f"{value:.2f}×"


def seconds(value: float) -> str:
    """`0.4 s`, `24 s`, `3.2 min`, `1.4 h`: two figures are enough to compare."""
    if value < 99.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5970 else f"{value / 3600:.1f} h"


def seeds(row: Row) -> str:
    """The number of seeds measured, `2/3` while some are missing."""
    return str(row.n) if row.n == len(row.expected) else f"{row.n}/{len(row.expected)}"


def shown(block: Block) -> tuple[str, ...]:
    """The metrics that tables print."""
    return block.shown


def columns(block: Block) -> tuple[str, ...]:
    """The headings that go with `values`."""
    return (*(name for metric in shown(block) for name in (metric, f"Δ {metric}")), "time", "passes", "n")


def state(row: Row) -> str:
    """What stands in place of a score: fail, n/a or --."""
    return STATES.get(row.state, MISSING)


def values(block: Block, row: Row) -> Sequence[str]:
    """What a row prints under `columns`; a row without a score shows its state instead."""
    if not row.cells:
        blank = [""] * (2 * len(shown(block)) + 2)
        return [state(row), *blank[1:], seeds(row) if row.expected else ""]
    printed = []
    for metric in shown(block):
        cell = row.cells.get(metric)
        digits = decimals(block, metric)
        printed += [score(cell, digits), difference(cell, digits)] if cell else [MISSING, ""]
    return [*printed, time(row), passes(row), seeds(row)]


def marks(block: Block, row: Row) -> Sequence[tuple[str, ...]]:
    """What marks the values of a row (best, second), one tuple a column; differences carry their dagger."""
    printed: list[tuple[str, ...]] = []
    for metric in shown(block):
        cell = row.cells.get(metric)
        printed += [tuple(mark for mark in (cell.marks if cell else ()) if mark in (BEST, SECOND)), ()]
    return [*printed, (), (), ()]


def footnotes(block: Block) -> list[str]:
    """Why rows of the block are not complete, for formats without room beside them, then its notes.

    Failed and partial rows are among the notes already.
    """
    reasons = [f"{row.arm}: {state(row)}, {row.reason}." for row in block.rows if row.state in ("--", "n/a")]
    return [*block.notes, *reasons]
