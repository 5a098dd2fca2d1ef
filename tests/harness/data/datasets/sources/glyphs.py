"""Nothing to write: the glyphs are drawn."""

from pathlib import Path


def write(folder: Path) -> None:
    return None
