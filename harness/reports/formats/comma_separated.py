"""Every cell in full precision for programs: one line a row and metric, with the records that made it."""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.leaderboard.tables import Leaderboard
from harness.reports import columns, place

SUFFIX = ".csv"
ALWAYS = True


def render(leaderboard: Leaderboard) -> str:
    """The text: scores and differences are fractions in [0, 1], lists have spaces, seeds stand as `seed:value`."""
    return written(columns.cells(leaderboard), columns.CELLS)


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.csv."""
    return place(folder, SUFFIX, render(leaderboard))


def written(lines: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """Lines as CSV; what is unknown is blank, truths are 1 and 0."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
