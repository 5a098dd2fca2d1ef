"""The leaderboard in full precision for programs: leaderboard.csv, one line per block, row and metric."""

from pathlib import Path

from harness.leaderboard.board import Board
from harness.leaderboard.columns import LEADERBOARD, as_csv
from harness.reports import place

SUFFIX = ".csv"
ALWAYS = True


def render(board: Board) -> str:
    """Return the text. Scores and differences are fractions in [0, 1]; lists are `seed:value`, with spaces."""
    return as_csv(board.frame[list(LEADERBOARD)])


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.csv."""
    return place(folder, f"leaderboard{SUFFIX}", render(board))
