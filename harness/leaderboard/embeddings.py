"""Embeddings as a DataFrame, for the file formats of pandas."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas


def frame(ids: Sequence[str], embeddings: np.ndarray, about: Mapping[str, Any]) -> pandas.DataFrame:
    """Return a line per image: its `id` and its `embedding`, a vector; what they are of is in `attrs`."""
    table = pandas.DataFrame({"id": list(ids), "embedding": list(embeddings)})
    table.attrs.update(about)
    return table


def as_parquet(ids: Sequence[str], embeddings: np.ndarray, about: Mapping[str, Any]) -> bytes:
    """Return a Parquet file with the columns id and embedding (list of float32), and `about` as its `attrs`."""
    return frame(ids, embeddings, about).to_parquet(index=False)
