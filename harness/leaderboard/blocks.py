"""Group the lines of the leaderboard into blocks. `fairness.comparability` decides which lines may be compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from harness.fairness.comparability import Comparable, Entry, Place, comparable_tables, distinguishing
from harness.leaderboard.columns import lines, plain
from harness.leaderboard.scores import FAILED, REFUSED, factors

STEPS = ("lr", "schedule", "step_epochs", "gamma")  # shared by a loss and its variants, not by other losses
RECORD_COLUMNS = (
    *("record", "parts", "dataset", "backbone", "arm", "baseline", "level", "seed", "tuned", *STEPS, "train_s"),
    *("forward_passes_per_step", "peak_gb", "parameters"),
)
ABSENT_COLUMNS = (
    *("record", "dataset", "backbone", "arm", "baseline", "level", "seed", "tuned", *STEPS),
    *("state", "kind", "reason", "attempts", "lacks"),
)


@dataclass
class Block:
    """The contents of one block of the leaderboard, in order.

    entries    one line per record, and one per trial without a record
    factors    the known shared factors
    differing  the factors that distinguish the block from others of the same place
    refused    the arms whose level has no form for the loss, with the reason
    """

    place: Place
    factors: dict[str, Any]
    entries: list[Any] = field(default_factory=list)
    differing: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


def arrange(seeds: pandas.DataFrame, absent: pandas.DataFrame) -> list[Block]:
    """Return the blocks of these seeds in table order: by place, the largest first.

    seeds, absent: the frames as `by_seed` returns them.
    """
    records = seeds.drop_duplicates("record").sort_values("record", kind="stable")
    absent = absent.assign(record=None)
    missing = absent[absent["state"] != REFUSED]
    order: Any = (missing["state"] != FAILED).astype(int).astype(str) + missing["trial"]
    missing = missing.loc[order.sort_values(kind="stable").index]
    refused: Any = absent[absent["state"] == REFUSED]
    refused = sorted(_entries(refused, ABSENT_COLUMNS, False), key=lambda entry: entry.place)
    tables = comparable_tables([*_entries(records, RECORD_COLUMNS, True), *_entries(missing, ABSENT_COLUMNS, False)])
    for entry in refused:
        if not any(table.accepts(entry.place, entry.factors) for table in tables):
            tables.append(Comparable(entry.place, entry.factors))
    return [
        Block(
            table.place,
            table.factors,
            [entry.of for entry in table.entries],
            dict(distinguishing(table, tables)),
            [(entry.arm, entry.of.reason) for entry in refused if table.accepts(entry.place, entry.factors)],
        )
        for table in tables
    ]


def _entries(table: pandas.DataFrame, names: Sequence[str], measured: bool) -> Iterator[Entry[Any]]:
    """Yield the lines of a frame as entries of comparable tables. Lines with equal factors share one dict."""
    for line, known in zip(lines(table, names), _shared_factors(table), strict=True):
        yield Entry((line.dataset, line.backbone), line.arm, line.level, line.seed, known, measured, line)


def _shared_factors(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return the shared factors of each line."""
    names = sorted(factors(table))
    distinct: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns = [plain(table[name]) for name in names]
    return (
        [distinct.setdefault(values, dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
        if names
        else [{}] * len(table)
    )
