"""The leaderboard for a paper: a booktabs table a block, to be read with \\input; needs \\usepackage{booktabs}."""

import re
from pathlib import Path

from harness.reports import place
from harness.reports._wording import columns, footnotes, heading, progress, values
from harness.tables import Block, Leaderboard, Row

SUFFIX = ".tex"
ALWAYS = True
LATIN = 0x180  # the letters that any LaTeX of today prints without a further package
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "λ": r"$\lambda$",
    "α": r"$\alpha$",
    "–": "--",
    "\u00a0": "~",
    "…": r"\ldots{}",
}


def render(leaderboard: Leaderboard) -> str:
    """The fragment: no preamble, ASCII but for letters, every name escaped."""
    head = f"% {' '.join(leaderboard.title.split())}: {progress(leaderboard)}. It needs \\usepackage{{booktabs}}."
    tables = [table(leaderboard, block) for block in leaderboard.blocks]
    notes = [f"% {' '.join(note.split())}" for note in leaderboard.notes]
    return "\n\n".join([head, *tables, *notes]) + "\n"


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.tex."""
    return place(folder, SUFFIX, render(leaderboard))


def table(leaderboard: Leaderboard, block: Block) -> str:
    """One table environment: caption and label above, losses set apart, floors behind a rule."""
    names = columns(block)
    groups = "\n    \\addlinespace\n".join("\n".join(line(block, row) for row in group) for group in block.groups)
    floors = "\n".join(line(block, row) for row in block.floors)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"  \caption[{{{escape(heading(block))}}}]{{{caption(leaderboard, block)}}}",
            rf"  \label{{{label(leaderboard, block)}}}",
            r"  \smallskip",
            rf"  \begin{{tabular}}{{@{{}}l{'r' * len(names)}@{{}}}}",
            r"    \toprule",
            "    & " + " & ".join(map(column, names)) + r" \\",
            r"    \midrule",
            "\n    \\midrule\n".join(part for part in (groups, floors) if part),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"  \par\smallskip",
            r"  \begin{minipage}{\linewidth}\footnotesize\raggedright",
            *(f"    {escape(note)}\\par" for note in (" ".join(block.caption), *footnotes(block))),
            r"  \end{minipage}",
            r"\end{table}",
        ]
    )


def column(name: str) -> str:
    """A heading; a difference stands right behind its metric and need not name it again."""
    return "$n$" if name == "n" else escape("Δ" if name.startswith("Δ") else name)


def line(block: Block, row: Row) -> str:
    """One row; differences are set small."""
    printed = [
        rf"{{\scriptsize {escape(value)}}}" if value and name.startswith("Δ") else escape(value)
        for name, value in zip(columns(block), values(block, row), strict=True)
    ]
    name = (r"\enspace " if row.indent else "") + escape(row.name)
    return f"    {name} & " + " & ".join(printed) + r" \\"


def caption(leaderboard: Leaderboard, block: Block) -> str:
    """What the numbers are; data, settings and notes stand under the table."""
    partial = (f"{progress(leaderboard)}.".capitalize(),) if leaderboard.partial else ()
    said = (f"{heading(block)}.", *partial, *leaderboard.caption)
    return " ".join(map(escape, said))


def label(leaderboard: Leaderboard, block: Block) -> str:
    """`tab:quick-glyphs-test-resnet`, numbered where a dataset and backbone have several blocks."""
    twins = [b for b in leaderboard.blocks if (b.dataset, b.backbone) == (block.dataset, block.backbone)]
    number = [str(n) for n, twin in enumerate(twins, 1) if twin is block and len(twins) > 1]
    words = re.findall(r"[a-z0-9]+", " ".join([leaderboard.title, block.dataset, block.backbone, *number]).lower())
    return "tab:" + "-".join(words)


def escape(text: str) -> str:
    """Text as LaTeX prints it literally; characters that its own fonts lack stand as `U+4E2D`."""
    text = text.replace(" %", "\u00a0%")
    return "".join(SPECIAL.get(c, c if ord(c) < LATIN else f"U+{ord(c):04X}") for c in text)
