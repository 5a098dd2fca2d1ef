"""Reports: one file a format, found by its file name.

A report is a module with `SUFFIX`, `render(leaderboard) -> str` and `write(leaderboard, folder) -> Path`. What it
writes depends on the leaderboard alone, so the same records give the same bytes.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness import registry

if TYPE_CHECKING:
    from harness.tables import Leaderboard


def names() -> tuple[str, ...]:
    """The formats there are."""
    return registry.names(__name__)


def write_all(leaderboard: "Leaderboard", folder: str | Path) -> list[Path]:
    """Write every report into `folder` and return the files, each put in place whole."""
    return [registry.entry(__name__, name, "report").write(leaderboard, Path(folder)) for name in names()]


def place(folder: Path, suffix: str, text: str) -> Path:
    """Write `folder/leaderboard<suffix>` aside and rename it into place: readers see all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"leaderboard{suffix}"
    aside = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with aside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path
