"""The command published: numbers of other publications, and how far they are apart."""

import csv
import shlex
import sys
from collections.abc import Sequence

from harness.cli.options import OK, add_command

MEANING = (
    "Numbers are in percent, as their sources print them, each under its own protocol; the spread is in points.",
    "All sources of a publication count as one. Where publications agree, one may have copied the other.",
    "second hand: read elsewhere than in the publication itself. reproduction: by others than its authors.",
)
THEIRS = "(theirs): defined otherwise than the loss of that name here."


def add_commands(commands) -> None:
    """Add the command of this file."""
    command = add_command(
        commands, published, "published", "list published numbers, and how far publications are apart"
    )
    command.add_argument("dataset", nargs="?", help="list only this dataset")
    command.add_argument("--backbone", metavar="NAME", help="list only this backbone")
    command.add_argument("--dim", metavar="D", help="list only this dimension")
    command.add_argument("--loss", metavar="NAME", help="list only this loss, with all its levels")
    command.add_argument(
        "--metric", metavar="NAME", help="list only this metric (default: R@1, or all that disagree)"
    )
    command.add_argument(
        "--disagreements", action="store_true", help="list only what publications disagree on, the largest first"
    )
    command.add_argument(
        "--format", choices=("terminal", "csv", "markdown"), default="terminal", help="how to print the list"
    )


def published(
    dataset: str | None,
    backbone: str | None,
    dim: str | None,
    loss: str | None,
    metric: str | None,
    disagreements: bool,
    format: str,
    words: Sequence[str],
) -> int:
    """Print for every cell the lowest and highest published number, their distance and their sources."""
    from harness.leaderboard.published import load, spread
    from harness.reports import terminal

    metric = metric or (None if disagreements else spread.METRIC)
    cells = spread.cells(load())
    cells = spread.select(cells, dataset=dataset, backbone=backbone, dim=dim, loss=loss, metric=metric)
    sentences = (*spread.summary(cells), *MEANING)
    title = "published numbers"
    if disagreements:
        cells = sorted((cell for cell in cells if cell.disagrees), key=lambda cell: -cell.spread)
        title += " on which publications disagree"
    if any("(theirs)" in cell.arm for cell in cells):
        sentences += (THEIRS,)
    rows = [cell.row for cell in cells]
    if format == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows((spread.COLUMNS, *rows))
    elif format == "markdown":
        from harness.reports.formats import markdown

        print(f"# {title.capitalize()}: `metrix-bench {shlex.join(words)}`\n")
        print("\n".join(f"- {markdown.escape(sentence)}" for sentence in sentences), end="\n\n")
        print(markdown.plain_table(spread.COLUMNS, rows))
    else:
        terminal.table(title, spread.COLUMNS, rows)
        print("\n".join(sentences))
    return OK
