"""What every column of the CSV and Parquet files means: leaderboard.schema.md."""

from pathlib import Path

from harness.leaderboard.tables import Leaderboard
from harness.reports import columns, place
from harness.runs.record import SCHEMA

SUFFIX = ".schema.md"
ALWAYS = False


def render(leaderboard: Leaderboard) -> str:
    """The document; it is the same for every leaderboard of this version."""
    parts = [
        "# Columns of the leaderboard's files",
        f"Made from records of schema {SCHEMA}. What is unknown is blank (null in Parquet), never zero; scores and "
        "differences are fractions in [0, 1]; truths are 1 and 0 in CSV.",
        "## leaderboard.csv and leaderboard.parquet: one line a row and metric",
        _table(columns.CELLS),
        "## leaderboard.runs.csv and leaderboard.runs.parquet: one line a record and metric",
        _table(columns.RUNS),
    ]
    return "\n\n".join(parts) + "\n"


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.schema.md."""
    return place(folder, SUFFIX, render(leaderboard))


def _table(meanings: dict[str, columns.Column]) -> str:
    lines = [f"| `{name}` | {column.kind} | {column.meaning} |" for name, column in meanings.items()]
    return "\n".join(["| column | type | meaning |", "| --- | --- | --- |", *lines])
