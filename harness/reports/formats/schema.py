"""The meaning of every column of the CSV and Parquet files: leaderboard.schema.md."""

from collections.abc import Mapping
from pathlib import Path

from harness.leaderboard.board import Board
from harness.leaderboard.columns import FAMILIES, LEADERBOARD, SCORES, Column
from harness.reports import place
from harness.runs.record import SCHEMA

SUFFIX = ".schema.md"
ALWAYS = False


def render(board: Board) -> str:
    """Return the document, which is the same for every leaderboard of this version."""
    parts = [
        "# Columns of the leaderboard's files",
        f"Made from records of schema {SCHEMA}. What is unknown is blank (null in Parquet), never zero; scores and "
        "differences are fractions in [0, 1]; truths are 1 and 0 in CSV. In Python the two tables are "
        "`harness.leaderboard(scores)` and `scores = harness.scores(RUN)`.",
        "## leaderboard.csv and leaderboard.parquet: one line per block, row and metric",
        _table(LEADERBOARD),
        "## scores.csv and scores.parquet: one line per record and metric",
        "Up to version 1 of the records this table was called leaderboard.runs.csv; settings had short names there, "
        "such as `dim` for `model.dim` and `device` for `provenance.device`.",
        _table(SCORES),
        "The settings of a record follow, each under its name in a grid file:",
        "\n".join(
            ["| columns | meaning |", "| --- | --- |", *(f"| `{n}` | {text} |" for n, text in FAMILIES.items())]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.schema.md."""
    return place(folder, f"leaderboard{SUFFIX}", render(board))


def _table(columns: Mapping[str, Column]) -> str:
    lines = [f"| `{name}` | {column.kind} | {column.meaning} |" for name, column in columns.items()]
    return "\n".join(["| column | type | meaning |", "| --- | --- | --- |", *lines])
