"""The figures of the page for papers: figures/*.pdf and *.svg, for one and for two columns."""

from pathlib import Path

from harness.leaderboard.tables import Leaderboard

SUFFIX = ".pdf"
ALWAYS = False


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write every figure of every block into folder/figures, and return that folder."""
    from harness.reports.drawing import draw_leaderboard

    draw_leaderboard(leaderboard, folder / "figures")
    return folder / "figures"
