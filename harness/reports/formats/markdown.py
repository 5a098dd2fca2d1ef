"""The leaderboard for a README: one GitHub table per block, followed by its caption and notes."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.leaderboard import captions, published
from harness.leaderboard.board import Block, Board
from harness.reports import place
from harness.reports.wording import (
    BEST,
    INFLATION,
    MISSING,
    SECOND,
    below,
    columns,
    counterparts,
    decimals,
    footnotes,
    inflation,
    marks,
    progress,
    score,
    values,
)

PUBLISHED_ROWS = "Rows in italics with a source"
SUFFIX = ".md"
ALWAYS = True


def render(board: Board) -> str:
    """Return the text, with every special character of Markdown escaped."""
    parts = [f"# {escape(board.title)} ({progress(board)})"]
    for block in board.blocks:
        parts += [f"## {escape(block.heading)}", table(block), escape(" ".join(block.caption))]
        parts.append("\n".join(f"- {escape(note)}" for note in footnotes(block)))
        parts.append(reproduced(block))
    parts.append(escape(" ".join(captions.of_board(board, published=PUBLISHED_ROWS))))
    parts += [escape(note) for note in board.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.md."""
    return place(folder, f"leaderboard{SUFFIX}", render(board))


def plain_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows of values below their names as a table; None is blank."""
    lines = [[escape("" if value is None else str(value)) for value in row] for row in (names, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(names), *lines[1:]))


def table(block: Block) -> str:
    """Return the table of a block. Variants are indented; floors come last, after an empty line."""
    names = ("", *columns(block))
    lines = [names, ("---", *("---:" for _ in names[1:]))]
    lines += [(label(row) + below(row), *map(marked, values(block, row), marks(block, row))) for row in block.trained]
    lines += [
        (f"*{escape(row.arm)}* ({escape(published.short(row.source))})", *_published_cells(block, row))
        for row in block.published
    ]
    if block.trained and block.floors:
        lines.append(("",) * len(names))
    lines += [(f"*{label(row)}*", *map(escape, values(block, row))) for row in block.floors]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def reproduced(block: Block) -> str:
    """Return a table of published rows next to our results for the same arm, with the inflation if known."""
    pairs = list(counterparts(block))
    metrics = [m for m in block.metrics if any(block.cell(published_row, m) for published_row, _ in pairs)]
    if not metrics:
        return ""
    columns = [text for m in metrics for text in (f"{m}, published", f"{m}, here")]
    inflations = [inflation(block.cell(own_row, metrics[0])) for _, own_row in pairs]
    known = any(text != MISSING for text in inflations)
    names = ["published and reproduced", "source", *columns, *([f"inflation of {metrics[0]}"] if known else [])]
    lines = [names, ["---", "---", *("---:" for _ in names[2:])]]
    for (published_row, own_row), text in zip(pairs, inflations, strict=True):
        cells = [escape(published_row.arm), escape(published.short(published_row.source))]
        for m in metrics:
            cells.append(f"*{100 * cell.mean:.1f}*" if (cell := block.cell(published_row, m)) else "")
            cells.append(escape(score(cell, decimals(block, m))) if (cell := block.cell(own_row, m)) else "")
        lines.append([*cells, *([escape(text)] if known else [])])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + (f"\n\n{escape(INFLATION.format(metrics[0]))}" if known else "")


def label(row: Any) -> str:
    """Return the name of a row, indented if it is a variant."""
    return "&nbsp;&nbsp;" * bool(row.baseline) + escape(row.name)


def marked(value: str, marks: tuple[str, ...]) -> str:
    """Return a value in bold if it is among the best, underlined if it is second."""
    text = escape(value)
    text = f"<u>{text}</u>" if SECOND in marks else text
    return f"**{text}**" if BEST in marks else text


def _published_cells(block: Block, row: Any) -> list[str]:
    """Return the cells of a published row: only scores, in italics."""
    cells = (block.cell(row, metric) for metric in block.shown)
    values = (f"*{100 * cell.mean:.1f}*" if cell else "" for cell in cells)
    return [*(text for value in values for text in (value, "")), "", "", ""]


def escape(text: str) -> str:
    """Escape text so that Markdown prints it literally, including inside tables."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", text)
