"""The files of grids: those in this folder, which ship, and those that users write.

notation     YAML and the brackets of an arm
validation   what is wrong with a setting, in the words of the file
overrides    --set key=value
"""

import os
from pathlib import Path
from typing import Any

from harness.errors import GridError, unknown
from harness.grids import notation


def shipped() -> dict[str, Path]:
    """Return the grids that ship: name → file."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find(source: str | Path, folder: Path = Path()) -> Path:
    """Return the file of a grid: an existing path relative to `folder`, or the name of a shipped grid.

    Raise GridError with the nearest names if there is none.
    """
    path = folder / source
    if path.is_file():
        return path
    if (name := str(source).removesuffix(".yaml")) in shipped():
        return shipped()[name]
    if path.is_dir():
        raise GridError(str(source), ["this is a folder; a grid is a YAML file"])
    raise GridError(str(source), [unknown("grid or grid file", str(source), shipped())])


def read(path: Path) -> dict[str, Any]:
    """Return the settings in a grid file as they are written. Raise GridError if there are none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GridError(str(path), [f"the file cannot be read: {error.strerror}"]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise GridError(str(path), [f"the file is not UTF-8 text: line {line} contains the byte {byte:#x}"]) from None
    content, problems = notation.parse(text)
    if not problems and not isinstance(content, dict):
        problems = ["the file contains no settings; see the shipped grids for examples"]
    elif not problems and "parts" in content:
        problems = ["parts: no such setting; to combine grids, write include: [grid, …]"]
    if problems:
        raise GridError(str(path), problems)
    return content


def included(content: dict[str, Any]) -> list[str]:
    """Return the names of the grids that a grid includes."""
    names = content.get("include")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def texts(source: str | Path) -> dict[str, str]:
    """Return the files that a grid is read from, except those that ship: name → text.

    The first is `source` as it is written; the others are those that it includes, relative to its folder. A file
    that is not a grid is returned alone; loading it reports what is wrong.
    """
    files: dict[str, str] = {}
    _add_texts(files, Path(source), str(source), Path())
    return files


def _add_texts(files: dict[str, str], path: Path, name: str, folder: Path) -> None:
    """Add the file `path` under `name`, and the files that it includes, whose paths are relative to `folder`."""
    if name in files or not path.is_file():
        return
    files[name] = path.read_bytes().decode("utf-8-sig", errors="replace")
    content, _ = notation.parse(files[name])
    for other in included(content) if isinstance(content, dict) else ():
        below = os.path.normpath(folder / other)
        _add_texts(files, path.parent / other, below, Path(below).parent)
