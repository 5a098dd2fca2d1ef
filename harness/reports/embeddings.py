"""Embeddings of images as one file: npz for numpy, parquet for data frames."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.reports import place
from harness.runs import files

Writer = Callable[[Path, Sequence[str], np.ndarray, Mapping[str, Any]], object]


def writer(path: Path) -> Writer:
    """Return what writes (path, ids, embeddings, about) in the format of a file's ending.

    Raises UserError for an unknown ending and for a folder that cannot be made.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"{path} does not end in {' or '.join(WRITERS)}, the formats of embeddings")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    try:
        files.make_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return WRITERS[path.suffix]


def _as_npz(path: Path, ids: Sequence[str], embeddings: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write the arrays ids (n,) and embeddings (n, dim), and `about`, a text in JSON."""
    arrays = {"ids": np.array(ids), "embeddings": embeddings, "about": np.array(json.dumps(about))}

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] (taken for allow_pickle)

    files.put(path, write)


def _as_parquet(path: Path, ids: Sequence[str], embeddings: np.ndarray, about: Mapping[str, Any]) -> None:
    from harness.leaderboard.embeddings import as_parquet

    place(path.parent, path.name, as_parquet(ids, embeddings, about))


WRITERS: dict[str, Writer] = {".npz": _as_npz, ".parquet": _as_parquet}
