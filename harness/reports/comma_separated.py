"""Every cell in full precision for programs: one line a row and metric, with the records that made it."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from harness.reports import place
from harness.tables import Block, Leaderboard, Row

SUFFIX = ".csv"
ALWAYS = True
COLUMNS = (
    *("dataset", "backbone", "factors", "arm", "baseline", "level", "metric", "state", "reason", "n", "expected_n"),
    *("mean", "half", "low", "high", "std", "interval"),
    *("difference", "difference_half", "difference_low", "difference_high", "difference_n", "difference_seeds"),
    *("difference_p", "difference_interval"),
    *("train_s", "relative_time", "forward_passes_per_step", "relative_passes", "lr", "schedule"),
    *("values_by_seed", "records"),
)


def render(leaderboard: Leaderboard) -> str:
    """The text: scores and differences are fractions in [0, 1], lists have spaces, seeds stand as `seed:value`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for block in leaderboard.blocks:
        for row in block.rows:
            writer.writerows(lines(block, row))
    return text.getvalue()


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.csv."""
    return place(folder, SUFFIX, render(leaderboard))


def lines(block: Block, row: Row) -> Iterator[dict[str, object]]:
    """One dict a metric of the block; without a score its numbers are left blank, never zero."""
    about = {
        "dataset": block.dataset,
        "backbone": block.backbone,
        "factors": "; ".join(f"{name}={value}" for name, value in block.factors),
        "arm": row.arm,
        "baseline": row.loss if row.indent else "",
        "level": row.level,
        "state": row.state,
        "reason": row.reason,
        "expected_n": len(row.expected),
        "train_s": row.train_s,
        "relative_time": row.relative_time,
        "forward_passes_per_step": row.passes,
        "relative_passes": row.relative_passes,
        "lr": row.steps.get("lr"),
        "schedule": row.steps.get("schedule"),
        "records": " ".join(f"{record.trial.seed}:{record.id}" for record in row.records),
    }
    for metric in block.metrics:
        yield {**about, "metric": metric, "n": 0, **numbers(row, metric)}


def numbers(row: Row, metric: str) -> dict[str, object]:
    """The numbers of one cell, by column."""
    cell = row.cells.get(metric)
    if cell is None:
        return {}
    has = cell.half is not None
    found = {
        "n": cell.n,
        "mean": cell.mean,
        "half": cell.half,
        "low": cell.interval.low if has else None,
        "high": cell.interval.high if has else None,
        "std": cell.interval.std if cell.n > 1 else None,
        "interval": cell.interval.method,
        "values_by_seed": " ".join(f"{seed}:{value!r}" for seed, value in sorted(cell.by_seed.items())),
    }
    if (paired := cell.paired) is not None:
        has = cell.difference_half is not None
        found |= {
            "difference": paired.mean,
            "difference_half": cell.difference_half,
            "difference_low": paired.low if has else None,
            "difference_high": paired.high if has else None,
            "difference_n": paired.n,
            "difference_seeds": " ".join(map(str, sorted(paired.seeds))),
            "difference_p": paired.p if has else None,
            "difference_interval": paired.method,
        }
    return found
