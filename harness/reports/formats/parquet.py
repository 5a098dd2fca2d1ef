"""Cells and runs as Parquet, with a schema document: leaderboard.parquet, leaderboard.runs.parquet."""

from pathlib import Path

from harness.leaderboard import tables
from harness.leaderboard.tables import Leaderboard
from harness.reports import columns, place
from harness.reports.formats import schema

SUFFIX = ".parquet"
ALWAYS = False


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.parquet, leaderboard.runs.parquet and leaderboard.schema.md."""
    kinds = [{name: column.kind for name, column in some.items()} for some in (columns.CELLS, columns.RUNS)]
    place(folder, f".runs{SUFFIX}", tables.parquet(columns.runs(leaderboard), kinds[1]))
    schema.write(leaderboard, folder)
    return place(folder, SUFFIX, tables.parquet(columns.cells(leaderboard), kinds[0]))
