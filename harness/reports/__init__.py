"""Reports: one file a format, a file of `formats`, found by its name.

A report is a module with `SUFFIX` (what its file ends in), `ALWAYS` (whether every report writes it or only one that
asks for it) and `write(board, folder) -> Path`, which may put further files beside the one it returns; formats
that are text have `render(board) -> str` too. What is written depends on the leaderboard alone, so the same
records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from harness import registry
from harness.runs import files

if TYPE_CHECKING:  # at run time it would import pandas, which most commands do without
    from harness.leaderboard.board import Board

FORMATS = f"{__name__}.formats"


def names() -> tuple[str, ...]:
    """The formats there are."""
    return registry.names(FORMATS)


def find(word: str) -> ModuleType:
    """The report of a format's name or of what its files end in: `latex` or `tex`. RegisterError with near names."""
    found = {name: registry.entry(FORMATS, name, "report") for name in names()}
    short = {module.SUFFIX.lstrip("."): module for module in found.values()}
    if word not in found and word not in short:
        raise registry.RegisterError(registry.unknown("report format", word, {*found, *short}))
    return found.get(word) or short[word]


def write_all(board: Board, folder: str | Path, formats: Iterable[str] = ()) -> list[Path]:
    """Write reports into `folder`, those of `formats` or the usual ones; the files, each put in place whole."""
    asked = [find(word) for word in formats] or [find(name) for name in names() if find(name).ALWAYS]
    return [module.write(board, Path(folder)) for module in asked]


def place(folder: Path, name: str, content: str | bytes) -> Path:
    """Write `folder/name` aside and rename it into place: readers see all of it or nothing."""
    path, data = folder / name, content.encode() if isinstance(content, str) else content
    files.put(path, lambda aside: aside.write_bytes(data))
    return path
