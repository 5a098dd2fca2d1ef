"""Your own images, listed in a CSV file: path,label,split[,role].

`path` is relative to the CSV file's folder and may not leave it, nor through links; `split` is train, validation
or test; `role` is query or gallery for test images, or left out when every test image is both. `data` is the CSV
file, or a folder with a `manifest.csv`.
"""

from __future__ import annotations

import csv
import os
import posixpath
from pathlib import Path

from harness import registry
from harness.datasets import ROLES, SPLITS, Dataset, DatasetError
from harness.datasets._files import Row, from_files

NEEDS_DATA = True

COLUMNS = ("path", "label", "split", "role")


def load(data: Path | None, cache: Path, *, mirrored: bool = True) -> Dataset:
    """Index the images that the CSV file lists, in its order.

    mirrored: whether a mirrored image still shows its class (it does not for characters).

    Raises DatasetError with every wrong line of the file at once, or with every file that is missing.
    """
    path = data / "manifest.csv" if data.is_dir() else data
    if not path.exists():
        raise DatasetError(f"manifest: there is no {path}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or [])
            numbered = [(reader.line_num, line) for line in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"manifest: {path} is not a CSV file in UTF-8: {error}") from error
    inside = _Inside(path.parent)
    problems = [f"line {number}: {problem}" for number, line in numbered for problem in _problems(line, inside)]
    if problems:
        raise DatasetError("\n  ".join([f"manifest: {len(problems)} mistakes in {path}:", *problems]))
    rows = [
        Row(posixpath.normpath(line["path"]), line["label"], line["split"], line.get("role") or "")
        for _, line in numbered
    ]
    return from_files("manifest", path.parent, rows, mirrored=mirrored)


def _check_columns(path: Path, columns: list[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            raise DatasetError(f"manifest: {path}: {registry.unknown('column', column, COLUMNS)}")
    for column in COLUMNS[:3]:
        if column not in columns:
            raise DatasetError(
                f"manifest: {path} has no column {column!r}; its first line is path,label,split[,role]"
            )


class _Inside:
    """Whether files lie below a folder once symbolic links are followed; each folder is looked up once."""

    def __init__(self, folder: Path):
        self._folder, self._real = folder, os.path.realpath(folder)
        self._parents: dict[str, str] = {}

    def leads_to(self, path: str) -> str | None:
        """Where outside the folder a relative path leads to; None where it stays inside."""
        parent, name = posixpath.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(self._folder / parent)
        real = os.path.join(self._parents[parent], name)
        real = os.path.realpath(real) if os.path.islink(real) else real
        return None if os.path.commonpath((real, self._real)) == self._real else real


def _problems(line: dict, inside: _Inside) -> list[str]:
    """What is wrong with one line, in words."""
    if None in line or None in line.values():
        return [f"more or fewer values than columns ({', '.join(v for v in line.values() if isinstance(v, str))})"]
    found = [f"{column} is empty" for column in COLUMNS[:3] if not line[column]]
    path = posixpath.normpath(line["path"])
    if posixpath.isabs(path) or path.split("/")[0] == "..":
        found.append(f"path {line['path']!r} leaves the folder of the manifest")
    elif line["path"] and (outside := inside.leads_to(path)):
        found.append(f"path {line['path']!r} leaves the folder of the manifest: a link leads to {outside}")
    if line["split"] and line["split"] not in SPLITS:
        found.append(registry.unknown("split", line["split"], SPLITS))
    if line.get("role") and line["role"] not in ROLES:
        found.append(registry.unknown("role", line["role"], ROLES))
    if line.get("role") and line["split"] != "test":
        found.append(f"role {line['role']!r} in split {line['split']!r}; only test images have one")
    return found
