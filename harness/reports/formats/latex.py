"""The leaderboard for a paper: booktabs tables, compiled alone or read with \\input.

The file contains, in this order:

- a table for each network with several datasets, with a column group for each dataset
- a table for each dataset and network, with costs
- an ablation table for each loss whose variants differ in their settings
- a table of published and reproduced numbers

siunitx aligns the numbers if the document loads it.
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
    """Return the file with every name escaped. It can be read with \\input or compiled alone."""
    about = " ".join(board.title.split())
    use = r"For \input: \usepackage{booktabs,xcolor}, and siunitx to align numbers."
    cited = cites(board)
    head = f"% {about}: {progress(board)}. {use}"
    if cited:
        head += f"\n% Published rows: {CITED}."
        head += "\n% A paper that reads this file names leaderboard in its own \\bibliography."
    end = r"\bibliographystyle{plain}\bibliography{leaderboard}" if cited else ""
    captions_text = " ".join(map(sentence, captions.of_board(board, published="With a citation")))
    notes = [*board.notes] + ([f"{progress(board)}.".capitalize()] if board.partial else [])
    return (
        "\n\n".join(
            [
                head,
                ALONE.replace("%(end)s", rf"\clearpage\noindent\small {captions_text}\par{end}"),
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
    """Return whether the file shows published rows, whose sources are in leaderboard.bib."""
    return any(block.published for block in board.blocks)


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.tex, and leaderboard.bib if published rows are cited."""
    sources = {row.source for block in board.blocks for row in block.published}
    if keys := {key for source in sources if (key := published.key(source))}:
        place(folder, "leaderboard.bib", published.bibliography(keys))
    return place(folder, f"leaderboard{SUFFIX}", render(board))
