"""The lines of each block of the leaderboard: those that may be compared, as `fairness.comparability` decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from harness.fairness.comparability import Entry, Place, comparable_tables, distinguishing
from harness.leaderboard.columns import lines, plain
from harness.leaderboard.scores import FAILED, REFUSED, factors

STEPS = ("lr", "schedule", "step_epochs", "gamma")  # shared by a loss and its variants, not by other losses
OF_RECORDS = (
    *("record", "parts", "dataset", "backbone", "arm", "baseline", "level", "seed", "tuned", *STEPS, "train_s"),
    *("forward_passes_per_step", "peak_gb", "parameters"),
)
OF_ABSENT = (
    *("record", "dataset", "backbone", "arm", "baseline", "level", "seed", "tuned", *STEPS),
    *("state", "kind", "reason", "attempts", "lacks"),
)


@dataclass
class Block:
    """What one block of the leaderboard contains, in order.

    entries    lines of the scores, one per record, or of what is absent
    factors    the shared factors as far as they are known; `differing` are those that tell the block from others
    refused    the arms without a Metrix form, with the reason
    """

    place: Place
    factors: dict[str, Any]
    entries: list[Any] = field(default_factory=list)
    differing: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


def arrange(seeds: pandas.DataFrame, absent: pandas.DataFrame) -> list[Block]:
    """Return the blocks of these seeds in the order of the tables: by place, the largest first.

    seeds, absent: the frames as `by_seed` returns them.
    """
    records = seeds.drop_duplicates("record").sort_values("record", kind="stable")
    lost = absent[absent["state"] != REFUSED].assign(record=None)
    order: Any = (lost["state"] != FAILED).astype(int).astype(str) + lost["trial"]
    lost = lost.loc[order.sort_values(kind="stable").index]
    tables = comparable_tables([*_entries(records, OF_RECORDS, True), *_entries(lost, OF_ABSENT, False)])
    blocks = [
        Block(table.place, table.factors, [entry.of for entry in table.entries], dict(distinguishing(table, tables)))
        for table in tables
    ]
    return blocks + _without_form(absent, blocks)


def _entries(table: pandas.DataFrame, names: Sequence[str], measured: bool) -> Iterator[Entry[Any]]:
    """Yield the lines of a frame as they enter tables; lines with equal factors share one dict."""
    for line, known in zip(lines(table, names), _known(table), strict=True):
        yield Entry(_place(line), line.arm, line.level, line.seed, known, measured, line)


def _known(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return the shared factors of each line."""
    names = sorted(factors(table))
    distinct: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns = [plain(table[name]) for name in names]
    return (
        [distinct.setdefault(values, dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
        if names
        else [{}] * len(table)
    )


def _place(line: Any) -> Place:
    return line.dataset, line.backbone


def _without_form(absent: pandas.DataFrame, blocks: Sequence[Block]) -> list[Block]:
    """Give each block the arms of its place that have no Metrix form; the blocks of places that have nothing else."""
    further: dict[Place, Block] = {}
    for line in lines(absent[absent["state"] == REFUSED], ("dataset", "backbone", "arm", "reason")):
        homes = [block for block in blocks if block.place == _place(line)]
        for home in homes or [further.setdefault(_place(line), Block(_place(line), {}))]:
            home.refused.append((line.arm, line.reason))
    return [further[place] for place in sorted(further)]
