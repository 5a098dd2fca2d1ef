"""Your own images, listed in a CSV file: path,label,split[,role].

`path` is relative to the folder of the CSV file and must not leave it, not even through links. `split` is train,
validation or test. `role` is query or gallery for test images, and is omitted if every test image is both. `data` is
the CSV file, or a folder with a `manifest.csv`. It is in UTF-8, or in UTF-16 as Excel saves "Unicode text".
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import registry
from harness.data.datasets import _labels
from harness.data.datasets._dataset import ROLES, SPLITS, Dataset, DatasetError
from harness.data.datasets._files import Row, from_files
from harness.data.datasets._layout import text
from harness.errors import first_few

NEEDS_DATA = True

COLUMNS = ("path", "label", "split", "role")
LEAVES = "leaves the folder of the manifest"
MAX_OF_A_KIND = 5  # sentences printed about one kind of mistake

Mistake = tuple[int, str, str]  # line, kind, sentence


def load(data: Path, cache: Path, *, mirrored: bool = True) -> Dataset:
    """Index the images that the CSV file lists, in its order.

    mirrored: whether a mirrored image still shows its class (not true for characters).

    Raises DatasetError with all kinds of mistakes in the file at once, or with all missing files.
    """
    path = data / "manifest.csv" if data.is_dir() else data
    if not path.exists():
        raise DatasetError(f"manifest: there is no {path}")
    try:
        reader = csv.DictReader(io.StringIO(text("manifest", path), newline=""), strict=True)
        _check_columns(path, reader.fieldnames or [])
        numbered = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise DatasetError(f"manifest: {path} is not a CSV file: {error}") from error
    inside = _Inside(path.parent)
    mistakes = [(number, *problem) for number, line in numbered for problem in _problems(line, inside)]
    mistakes += [*_repeats(numbered, inside), *_spellings(numbered)]
    if mistakes:
        heading = f"manifest: {len(mistakes)} mistakes in {path}:"
        raise DatasetError("\n  ".join([heading, *_grouped(mistakes)]))
    rows = [
        Row(inside.relative(line["path"]), line["label"], line["split"], line.get("role") or "")
        for _, line in numbered
    ]
    return from_files("manifest", path.parent, rows, mirrored=mirrored)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            wrong = registry.unknown("column", column, COLUMNS)
            hint = "; values are separated by commas" if any(sign in column for sign in ";\t|") else ""
            raise DatasetError(f"manifest: {path}: {wrong}{hint}")
    for column in COLUMNS:
        if columns.count(column) > 1:
            raise DatasetError(f"manifest: {path} has {columns.count(column)} columns {column!r}")
        if column not in columns and column != "role":
            raise DatasetError(
                f"manifest: {path} has no column {column!r}; its first line is path,label,split[,role]"
            )


class _Inside:
    """Checks whether files are below a folder after following symbolic links; each folder is resolved once."""

    def __init__(self, folder: Path):
        self._folder, self._real = os.path.abspath(folder), os.path.realpath(folder)
        self._parents: dict[str, str] = {}

    def relative(self, path: str) -> str:
        """Return the normalised path relative to the folder; absolute paths into the folder become relative."""
        for folder in (self._folder, self._real):
            if path.startswith(folder.rstrip("/") + "/"):
                path = posixpath.relpath(path, folder)
        return posixpath.normpath(path)

    def exists(self, path: str) -> bool:
        """Return whether a relative path exists."""
        return os.path.exists(os.path.join(self._folder, path))

    def target_outside(self, path: str) -> str | None:
        """Return where outside the folder a relative path leads to; None if it stays inside."""
        parent, name = posixpath.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(os.path.join(self._folder, parent))
        real = os.path.join(self._parents[parent], name)
        real = os.path.realpath(real) if os.path.islink(real) else real
        return None if os.path.commonpath((real, self._real)) == self._real else real


def _problems(line: dict, inside: _Inside) -> Iterator[tuple[str, str]]:
    """Yield the kind and the description of each mistake in one line."""
    if None in line or None in line.values():
        values = ", ".join(v for v in line.values() if isinstance(v, str))
        yield "values", f"more or fewer values than columns ({values})"
        return
    for column in COLUMNS[:3]:
        if not line[column]:
            yield f"no {column}", f"{column} is empty"
    if wrong := _path_problem(line["path"], inside):
        yield "path", wrong
    if line["label"] and (wrong := _labels.fault(line["label"])):
        yield "label", f"label {wrong}"
    if line["split"] and line["split"] not in SPLITS:
        yield "split", registry.unknown("split", line["split"], SPLITS)
    elif line.get("role") and line["split"] != "test":
        yield "split of role", f"role {line['role']!r} in split {line['split']!r}; only test images have one"
    if line.get("role") and line["role"] not in ROLES:
        yield "role", registry.unknown("role", line["role"], ROLES)


def _path_problem(path: str, inside: _Inside) -> str | None:
    if "\0" in path:
        return f"path {path!r} contains a zero byte"
    relative = inside.relative(path)
    if posixpath.isabs(relative) or relative.split("/")[0] == "..":
        return f"path {path!r} {LEAVES}"
    if path and (outside := inside.target_outside(relative)):
        return f"path {path!r} {LEAVES}: a link leads to {outside}"
    if path != path.strip() and not inside.exists(relative):
        return f"path {path!r} begins or ends with a space, and there is no such file"
    return None


def _repeats(numbered: Sequence[tuple[int, dict]], inside: _Inside) -> Iterator[Mistake]:
    """Yield files that several lines list, and the columns in which these lines differ."""
    first: dict[str, tuple[int, dict]] = {}
    for number, line in numbered:
        if line.get("path"):
            before, other = first.setdefault(inside.relative(line["path"]), (number, line))
            if before != number:
                differs = [column for column in COLUMNS[1:] if line.get(column) != other.get(column)]
                difference = f" with another {' and '.join(differs)}" if differs else ""
                yield number, "repeat", f"path {line['path']!r} is listed in line {before} already{difference}"


def _spellings(numbered: Sequence[tuple[int, dict]]) -> Iterator[Mistake]:
    """Yield labels that look alike, with the lines of each spelling."""
    where: dict[str, list[int]] = defaultdict(list)
    for number, line in numbered:
        if label := line.get("label"):
            where[label].append(number)
    for group in _labels.look_alikes(label for label in where if _labels.fault(label) is None):
        named = " and ".join(f"{_labels.shown(label)} ({_lines(where[label])})" for label in group)
        first = min(where[label][0] for label in group)
        yield first, "spelling", f"labels that {_labels.ALIKE}: {named}. {_labels.REMEDY}"


def _grouped(mistakes: Sequence[Mistake]) -> Iterator[str]:
    """Yield the mistakes by kind and sentence, in the order of their first lines."""
    kinds: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, kind, sentence in mistakes:
        kinds[kind][sentence].append(number)
    for sentences in kinds.values():
        ordered = list(sentences.items())
        for sentence, numbers in ordered[:MAX_OF_A_KIND]:
            yield f"{_lines(numbers)}: {sentence}"
        if rest := sorted(number for _, numbers in ordered[MAX_OF_A_KIND:] for number in numbers):
            yield f"{_lines(rest)}: more mistakes of the same kind"


def _lines(numbers: Sequence[int]) -> str:
    return f"line{'s' * (len(numbers) > 1)} {first_few(list(map(str, numbers)))}"
