"""The leaderboard for a paper: booktabs tables, compiled alone or read with \\input.

The file holds, in this order: for each network with several datasets a table with a column group for each; a table
for each dataset and network, with costs; an ablation table for each loss whose variants differ in their settings;
and what others published beside what was reproduced. siunitx aligns the numbers where the document loads it.
"""

from pathlib import Path

from harness.leaderboard import captions, published
from harness.leaderboard.board import Board
from harness.reports import latex_tables as tables
from harness.reports import place
from harness.reports.latex_tables import sentence
from harness.reports.wording import progress

SUFFIX = ".tex"
ALWAYS = True
CITED = "citations of leaderboard.tex are [?] until bibtex has run: pdflatex, bibtex, pdflatex, pdflatex"
ALONE = r"""\expandafter\ifx\csname @twoclasseserror\endcsname\documentclass\else % compiled alone
  \documentclass[10pt]{article}
  \IfFileExists{lmodern.sty}{\usepackage[T1]{fontenc}\usepackage{lmodern}}{}% T1 without it means bitmap fonts
  \usepackage[utf8]{inputenc}
  \usepackage[a4paper,margin=2cm]{geometry}
  \usepackage{booktabs,siunitx,xcolor}
  \usepackage[font=small,labelfont=bf]{caption}
  \makeatletter\setlength\@fptop{0pt}\makeatother
  \begin{document}
  \expandafter\let\csname leaderboardend\endcsname\relax
  \def\leaderboardend{%(end)s\end{document}}
\fi
\providecommand{\leaderboardend}{}
\providecommand{\color}[2][]{\itshape}"""


def render(board: Board) -> str:
    """The file: ASCII but for letters, every name escaped; \\input it, or compile it as it is."""
    about = " ".join(board.title.split())
    use = r"For \input: \usepackage{booktabs,xcolor}, and siunitx to align numbers."
    cited = cites(board)
    head = f"% {about}: {progress(board)}. {use}"
    if cited:
        head += f"\n% Published rows: {CITED}."
        head += "\n% A paper that reads this file names leaderboard in its own \\bibliography."
    end = r"\bibliographystyle{plain}\bibliography{leaderboard}" if cited else ""
    said = " ".join(map(sentence, captions.of_board(board, published="With a citation")))
    notes = [*board.notes] + ([f"{progress(board)}.".capitalize()] if board.partial else [])
    return (
        "\n\n".join(
            [
                head,
                ALONE.replace("%(end)s", rf"\clearpage\noindent\small {said}\par{end}"),
                *(f"% {' '.join(note.split())}" for note in notes),
                *tables.joint(board),
                *tables.single(board),
                *tables.ablations(board),
                *tables.reproduced(board),
                r"\leaderboardend",
            ]
        )
        + "\n"
    )


def cites(board: Board) -> bool:
    """Whether it shows rows that others published, whose sources are in leaderboard.bib."""
    return any(block.published for block in board.blocks)


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.tex and, where published rows are cited, leaderboard.bib."""
    sources = {row.source for block in board.blocks for row in block.published}
    if keys := {key for source in sources if (key := published.key(source))}:
        place(folder, "leaderboard.bib", published.bibliography(keys))
    return place(folder, f"leaderboard{SUFFIX}", render(board))
