"""Filters for reports, such as `--only dataset=cub200`.

There are two kinds. Dataset, backbone, protocol and seed select records before anything is computed. Loss, level and
arm select the rows to print afterwards, so differences, tests and ranks stay those of the whole table. The baseline
of a printed row is always printed with it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import registry
from harness.config import Trial
from harness.leaderboard.board import Block, Board
from harness.leaderboard.frame import ReportError

RECORDS: dict[str, Callable[[Trial], str]] = {
    "dataset": lambda trial: trial.dataset.name,
    "backbone": lambda trial: trial.backbone.name,
    "protocol": lambda trial: trial.protocol,
    "seed": lambda trial: str(trial.seed),
}
ROWS = ("loss", "level", "arm")


def parse(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return filters such as `dataset=cub200` or `arm=contrastive,contrastive+input` as {key: values}.

    A comma inside brackets belongs to the arm. Raises ReportError for an invalid filter.
    """
    filters: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise ReportError(f"--only {text!r} is not written key=value, such as dataset=cub200")
        if key not in (*RECORDS, *ROWS):
            raise ReportError(f"--only {text}: " + registry.unknown("filter", key, (*RECORDS, *ROWS)))
        filters.setdefault(key, []).extend(re.split(r",(?![^\[]*\])", values))
    return filters


def of_trials(only: Mapping[str, Sequence[str]], trials: Iterable[Trial]) -> Callable[[Trial], bool]:
    """Return a function that tells whether a trial passes the filters on records.

    Raises ReportError for a value that none of `trials` has.
    """
    wanted = {key: set(values) for key, values in only.items() if key in RECORDS}
    trials = list(trials)
    for key, values in wanted.items():
        require(key, values, {RECORDS[key](trial) for trial in trials}, f"--only {key}: ")
    return lambda trial: all(RECORDS[key](trial) in values for key, values in wanted.items())


def of_rows(board: Board, only: Mapping[str, Sequence[str]]) -> Board:
    """Return the board with only the rows that pass the filters on rows, and their baselines.

    Raises ReportError for a value that no row has.
    """
    wanted = {key: set(values) for key, values in only.items() if key in ROWS}
    if not wanted:
        return board
    for key, values in wanted.items():
        require(key, values, {getattr(row, key) for block in board.blocks for row in block.rows}, f"--only {key}: ")
    blocks = tuple(block for block in (_narrowed(block, wanted) for block in board.blocks) if block.rows)
    filters = "; ".join(f"{key} {', '.join(sorted(values))}" for key, values in sorted(wanted.items()))
    note = f"Only {filters}, with baselines: tests, ranks and marks are those of the whole table."
    visible = {(block.number, line.row) for block in blocks for line in block.lines}
    numbers = zip(board.frame["block"], board.frame["row"], strict=True)
    frame = board.frame[[number in visible for number in numbers]]
    return replace(board, frame=frame, blocks=blocks, notes=(*board.notes, note))


def _narrowed(block: Block, wanted: Mapping[str, set[str]]) -> Block:
    """Return the block with the rows that pass, and the notes and published rows that concern them."""
    rows = _printed(block, wanted)
    arms, losses = {row.arm for row in rows}, {row.loss for row in rows}
    published = [row for row in block.published if row.loss in losses]
    findings = tuple(note for note in block.findings if not note.arms or arms & set(note.arms))
    return replace(block.of_rows([*rows, *published]), findings=findings)


def _printed(block: Block, wanted: Mapping[str, set[str]]) -> list[Any]:
    printed: list[Any] = []
    baseline = None
    for row in block.rows:
        baseline = row if row.baseline is None else baseline
        if all(getattr(row, key) in values for key, values in wanted.items()):
            if row.baseline and baseline is not None and baseline not in printed:
                printed.append(baseline)
            printed.append(row)
    return printed


def require(kind: str, values: Iterable[str], known: set[str], where: str = "") -> None:
    """Raise ReportError for an unknown value, with the nearest known ones."""
    for value in sorted(values):
        if value not in known:
            raise ReportError(where + registry.unknown(kind, value, known))
