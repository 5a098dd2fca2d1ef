"""Every score for programs: scores.csv, one line per record and metric, with settings and provenance."""

from pathlib import Path

from harness.leaderboard.board import Board
from harness.leaderboard.columns import as_csv
from harness.leaderboard.scores import PER_METRIC
from harness.reports import place

SUFFIX = ".scores.csv"
ALWAYS = True


def render(board: Board) -> str:
    """Return the text. Scores are fractions in [0, 1]; unknown values are blank."""
    return as_csv(board.scores, PER_METRIC)


def write(board: Board, folder: Path) -> Path:
    """Write scores.csv."""
    return place(folder, "scores.csv", render(board))
