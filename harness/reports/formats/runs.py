"""Every run for programs: runs.csv, one line a record and metric, with its settings and where it comes from."""

from pathlib import Path

from harness.leaderboard.tables import Leaderboard
from harness.reports import columns, place
from harness.reports.formats.comma_separated import written

SUFFIX = ".runs.csv"
ALWAYS = False


def render(leaderboard: Leaderboard) -> str:
    """The text: scores are fractions in [0, 1], what is unknown is blank."""
    return written(columns.runs(leaderboard), columns.RUNS)


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.runs.csv."""
    return place(folder, SUFFIX, render(leaderboard))
