"""The leaderboard as one web page: no network; sorted, filtered, unfolded and drawn in the browser from its data."""

from functools import cache
from pathlib import Path

from harness.fairness import rules
from harness.leaderboard import captions
from harness.leaderboard.tables import Leaderboard
from harness.reports import place, wording
from harness.reports.page_data import dumps, page_data

SUFFIX = ".html"
ALWAYS = True
PARTS = Path(__file__).parents[1] / "page"
SCRIPTS = ("state", "table", "detail", "figures", "gallery", "downloads", "main")


def render(leaderboard: Leaderboard) -> str:
    """The page. The template escapes every name; the data escape what could end their element."""
    from markupsafe import Markup

    caption = captions.of_leaderboard(leaderboard, published="Grey", every=True)
    rows = [row for block in leaderboard.blocks for row in block.rows]
    return _template().render(
        title=leaderboard.title,
        progress=wording.progress(leaderboard),
        partial=leaderboard.partial,
        notes=leaderboard.notes,
        caption=caption,
        ranked=any(cell.rank for row in rows for cell in row.cells.values()),
        memory=any(row.peak_gb and not row.floor for row in rows),
        rules=_named(leaderboard),
        style=Markup(_part("style.css")),
        script=Markup("\n".join(_part(f"{name}.js") for name in SCRIPTS)),
        data=Markup(dumps(page_data(leaderboard, caption))),
    )


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.html."""
    return place(folder, SUFFIX, render(leaderboard))


def _named(leaderboard: Leaderboard) -> list[rules.Rule]:
    """The fairness rules that notes of the leaderboard begin with."""
    said = [*leaderboard.notes, *(note.sentence for block in leaderboard.blocks for note in block.findings)]
    ids = {sentence.partition(" ")[0] for sentence in said}
    return [rule for rule in rules.found() if rule.id in ids]


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8").rstrip("\n")


@cache
def _template():
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(_part("page.html") + "\n")
