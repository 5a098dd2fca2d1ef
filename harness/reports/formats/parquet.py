"""Both tables as Parquet, with a schema document: leaderboard.parquet, scores.parquet."""

from pathlib import Path

from harness.leaderboard.board import Board
from harness.leaderboard.columns import as_parquet
from harness.reports import place
from harness.reports.formats import schema

SUFFIX = ".parquet"
ALWAYS = False


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.parquet, scores.parquet and leaderboard.schema.md."""
    place(folder, "scores.parquet", as_parquet(board.scores))
    schema.write(board, folder)
    return place(folder, f"leaderboard{SUFFIX}", as_parquet(board.frame))
