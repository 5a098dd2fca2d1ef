"""Report formats: one module of `formats` per format, found by name.

A format is a module with `SUFFIX` (the ending of its file), `ALWAYS` (whether it is written by default) and
`write(board, folder) -> Path`, which may write more files than the one it returns. Text formats have
`render(board) -> str` as well. The output depends only on the leaderboard, so the same records give the same bytes.
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
    """Return the names of the formats."""
    return registry.names(FORMATS)


def find(word: str) -> ModuleType:
    """Return the format with this name or file ending, such as `latex` or `tex`.

    Raises RegisterError with similar names if there is none.
    """
    modules = {name: registry.entry(FORMATS, name, "report") for name in names()}
    by_suffix = {module.SUFFIX.lstrip("."): module for module in modules.values()}
    if word not in modules and word not in by_suffix:
        raise registry.RegisterError(registry.unknown("report format", word, {*modules, *by_suffix}))
    return modules.get(word) or by_suffix[word]


def write_all(board: Board, folder: str | Path, formats: Iterable[str] = ()) -> list[Path]:
    """Write reports in `formats`, or in the default formats, into `folder`. Return the files."""
    modules = [find(word) for word in formats] or [find(name) for name in names() if find(name).ALWAYS]
    return [module.write(board, Path(folder)) for module in modules]


def place(folder: Path, name: str, content: str | bytes) -> Path:
    """Write `folder/name` atomically: readers see the whole file or none."""
    path, data = folder / name, content.encode() if isinstance(content, str) else content
    files.put(path, lambda aside: aside.write_bytes(data))
    return path
