"""The leaderboard as one web page that needs no network. The browser sorts, filters and draws its data."""

from functools import cache
from pathlib import Path

from harness.fairness import rules
from harness.leaderboard import captions
from harness.leaderboard.board import Board
from harness.reports import looks, place, wording
from harness.reports.page_data import dumps, levels_of, page_data

SUFFIX = ".html"
ALWAYS = True
PARTS = Path(__file__).parents[1] / "page"
SCRIPTS = ("state", "table", "detail", "figures", "gallery", "downloads", "main")


def render(board: Board) -> str:
    """Return the page. The template escapes every name, and the data cannot close their script element."""
    from markupsafe import Markup

    caption = captions.of_board(board, published="Grey", every=True)
    return template("page.html").render(
        title=board.title,
        progress=wording.progress(board),
        partial=board.partial,
        notes=board.notes,
        caption=caption,
        ranked=bool(board.frame["rank"].notna().any()),
        memory=any(row.peak_gb for block in board.blocks for row in block.trained),
        rules=_named(board),
        style=Markup(_part("style.css") + "\n" + looks.css(levels_of(board))),
        script=Markup("\n".join(_part(f"{name}.js") for name in SCRIPTS)),
        data=Markup(dumps(page_data(board, caption))),
    )


def write(board: Board, folder: Path) -> Path:
    """Write leaderboard.html."""
    return place(folder, f"leaderboard{SUFFIX}", render(board))


def _named(board: Board) -> list[rules.Rule]:
    """Return the fairness rules that notes of the leaderboard begin with."""
    sentences = [*board.notes, *(note.sentence for block in board.blocks for note in block.findings)]
    ids = {sentence.partition(" ")[0] for sentence in sentences}
    return [rule for rule in rules.all_rules() if rule.id in ids]


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8").rstrip("\n")


@cache
def template(name: str):
    """Return the template of this name in `reports/page/`; it escapes what it is given."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(_part(name) + "\n")
