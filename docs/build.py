"""Make the API pages from the docstrings and check their references: `make docs`.

    python docs/build.py build/docs

Exit code 1 if a page links to something that does not exist, or if a docstring names something of this project (such
as `metrix.Metrix`) that has no page.
"""

import pkgutil
import re
import sys
import warnings
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pdoc
import pdoc.docstrings
import pdoc.render

PACKAGES = ("baselines", "metrix", "harness")
HERE = Path(__file__).parent


def modules() -> list[str]:
    """Return the names of all modules; pdoc itself leaves out what the `__all__` of a package does not list."""
    found: list[str] = []
    for package in PACKAGES:
        found += [package, *(m.name for m in pkgutil.walk_packages(import_module(package).__path__, f"{package}."))]
    return found


def listed(docstring: str) -> str:
    """Return a docstring with its aligned tables of arguments (name, two spaces, meaning) as Markdown lists."""
    paragraphs = docstring.split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        lines = paragraph.strip("\n").split("\n")
        rows = [re.fullmatch(r"([a-z_][\w, ]*?) {2,}(\S.*)", line) for line in lines]
        if rows[0] and all(row or line.startswith("   ") for row, line in zip(rows, lines, strict=True)):
            items = [f"- **{row[1]}**: {row[2]}" if row else line for row, line in zip(rows, lines, strict=True)]
            paragraphs[place] = "\n".join(items)
    return "\n\n".join(paragraphs)


def build(target: Path) -> None:
    """Write one page for each module without an underscore, and the index."""
    google = pdoc.docstrings.google
    pdoc.docstrings.google = lambda docstring: google(listed(docstring))
    # pdoc only sees attributes that exist, and some are imported on first use.
    for package in map(import_module, PACKAGES):
        for name in package.__all__:
            vars(package)[name] = getattr(package, name)
    pdoc.render.configure(docformat="google", template_directory=HERE, show_source=False)
    pdoc.pdoc(*modules(), r"!.*\._", output_directory=target)


class _Page(HTMLParser):
    """What a page defines (ids), where it links to, and which code in it is not a link."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.unlinked: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.update(filter(None, [given.get("id")]))
        if tag == "a" and given.get("href"):
            self.links.append(unquote(str(given["href"])))
        if tag in ("a", "code", "pre"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside == ["code"]:
            self.unlinked.append(data)


def broken(target: Path) -> list[str]:
    """Return one sentence for each reference of the pages in `target` that leads nowhere."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(target.rglob("*.html"))}
    found: list[str] = []
    for path, page in pages.items():
        where = path.relative_to(target)
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            to = (path.parent / parts.path).resolve() if parts.path else path.resolve()
            if to.suffix == ".html" and to not in pages:
                found.append(f"{where}: no page {link}")
            elif parts.fragment and parts.fragment not in pages[to].ids:
                found.append(f"{where}: no {link}")
        for code in page.unlinked:
            name = re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+(\(\))?", code)
            if name:
                found.append(f"{where}: no page describes `{code}`")
    return sorted(set(found))


def main(folder: str) -> int:
    """Build the pages in `folder`, print what is broken, and return the exit code."""
    target = Path(folder).resolve()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The module specification")  # a package lists its modules a second time
        build(target)
    faults = broken(target)
    print(
        "\n".join(faults or [f"{len(list(target.rglob('*.html')))} pages, no broken reference: {target}/index.html"])
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
