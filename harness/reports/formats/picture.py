"""One picture for a README: differences, cost and learning curves of the first table, leaderboard.svg."""

from pathlib import Path

from harness.leaderboard.board import Board

SUFFIX = ".svg"
ALWAYS = False


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.svg, for light and dark pages. Write nothing if no row was measured."""
    from harness.reports.drawing import draw_overview

    path = folder / f"leaderboard{SUFFIX}"
    draw_overview(board, path)
    return path
