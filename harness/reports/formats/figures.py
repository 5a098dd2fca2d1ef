"""The figures for papers: figures/*.pdf and *.svg, for one and for two columns."""

from pathlib import Path

from harness.leaderboard.board import Board

SUFFIX = ".pdf"
ALWAYS = False


def write(board: Board, folder: Path) -> Path:
    """Write every figure of every block into folder/figures, and return that folder."""
    from harness.reports.drawing import draw_board

    draw_board(board, folder / "figures")
    return folder / "figures"
