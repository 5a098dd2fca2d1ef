"""What arms retrieve, as pictures: people look before they read.

From the embeddings that trials kept: for a sample of test queries, the same for every arm, the nearest other images
with right and wrong marked. Images are shown where the dataset can be opened, names elsewhere.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from harness.config import Choice
from harness.data import datasets
from harness.data.datasets import Dataset, DatasetError
from harness.errors import first_few
from harness.leaderboard.board import Block, Board, record_ids
from harness.leaderboard.collection import Collection
from harness.reports import wording
from harness.runs.outcomes import UNREADABLE
from harness.runs.record import Record

QUERIES = 8  # of a block
NEIGHBOURS = 8  # of a query
MOST_ARMS = 16  # of a block: more than anyone compares at once
MOST_IMAGES = 700  # of a page, about a megabyte; later blocks show names
SIDE_PX = 56
SMALL_PX = 64  # drawings up to this size are kept exactly, photographs as JPEG


@dataclass(frozen=True)
class Shelf:
    """The gallery of one block.

    block     the number of the block on its leaderboard
    arms      those shown, all of training seed `seed`, and of one of its folds where it has several
    queries   (image, for each arm ((image, right), …) nearest first), images by their number
    names     of the images; images: as data URIs, empty where they cannot be read
    """

    block: int
    seed: int
    arms: tuple[str, ...]
    queries: tuple[tuple[int, tuple[tuple[tuple[int, bool], ...], ...]], ...]
    names: tuple[str, ...]
    images: tuple[str, ...]
    note: str

    def content(self) -> dict[str, Any]:
        """What a page holds of it."""
        return {
            "block": self.block,
            "arms": self.arms,
            "queries": [[asked, [[[i, int(r)] for i, r in near] for near in found]] for asked, found in self.queries],
            "names": self.names,
            "images": self.images,
            "note": self.note,
        }


def with_gallery(board: Board, collection: Collection, data: Path | None = None, cache: Path | None = None) -> Board:
    """The leaderboard with a gallery for each block whose trials kept their embeddings.

    data: folder of the dataset, for those that are not embedded; cache: where datasets keep what they compute.
    """
    found, room = [], MOST_IMAGES
    for number, block in enumerate(board.blocks):
        shelf = _shelf(number, block, collection, data, cache, room)
        if shelf is not None:
            found.append(shelf)
            room -= sum(map(bool, shelf.images))
    return replace(board, gallery=tuple(found))


def _shelf(
    number: int, block: Block, collection: Collection, data: Path | None, cache: Path | None, room: int
) -> Shelf | None:
    """The gallery of a block; None where no trained trial kept embeddings."""
    kept: dict[tuple[int, int], dict[str, Record]] = {}
    for row in block.rows:
        for id in record_ids(row):
            if id in collection.with_queries:
                record = collection.by_id[id]
                kept.setdefault((record.trial.seed, record.trial.fold or 0), {})[wording.full(row)] = record
    if not any(record.level != "floor" for records in kept.values() for record in records.values()):
        return None
    seed, fold = max(kept, key=lambda one: (len(kept[one]), -one[0], -one[1]))
    chosen = list(kept[seed, fold].items())[:MOST_ARMS]
    stored, damaged = {}, []
    for arm, record in chosen:
        try:
            stored[arm] = _Stored.read(collection.run_by_id[record.id].per_query(record.id))
        except UNREADABLE:
            damaged.append(arm)
    if not stored:
        return None
    first = next(iter(stored.values()))
    stored = {arm: kept for arm, kept in stored.items() if np.array_equal(kept.ids, first.ids)}
    asked = _sample(first, block.dataset)
    near = {arm: kept.nearest(asked) for arm, kept in stored.items()}
    numbers: dict[int, int] = {}
    queries = tuple(
        (
            numbers.setdefault(int(image), len(numbers)),
            tuple(
                tuple(
                    (numbers.setdefault(int(i), len(numbers)), bool(first.labels[i] == first.labels[image]))
                    for i in near[arm][place]
                )
                for arm in stored
            ),
        )
        for place, image in enumerate(asked)
    )
    names = tuple(str(first.ids[i]) for i in numbers)
    trial = chosen[0][1].trial
    images, why = _pictures(trial.dataset, names, data, cache, room)
    note = f"{len(queries)} random test queries, the same for all arms; training {trial.seed_and_fold}.{why}"
    if damaged:
        note += f" Left out, because the file of their embeddings is damaged: {first_few(damaged)}."
    return Shelf(number, seed, tuple(stored), queries, names, images, note)


@dataclass(frozen=True)
class _Stored:
    """What a trial kept of its one test read: normalised embeddings (n, d), ids, labels, which may ask and answer."""

    embeddings: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "_Stored":
        with np.load(path, allow_pickle=False) as stored:
            embeddings = stored["embeddings"].astype(np.float32)
            ids, labels, queries = stored["ids"], stored["labels"], stored["queries"]
            roles = stored.get("roles")
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        answering = np.arange(len(ids)) if roles is None else np.flatnonzero(roles == "gallery")
        return cls(embeddings, ids, labels, np.flatnonzero(np.isin(ids, queries)), answering)

    def nearest(self, asked: Sequence[int]) -> np.ndarray:
        """The NEIGHBOURS nearest images (asked, k) of each image `asked`, itself left out by its index."""
        similarities = self.embeddings[asked] @ self.embeddings[self.gallery].T
        similarities[np.asarray(asked)[:, None] == self.gallery] = -np.inf
        k = min(NEIGHBOURS, len(self.gallery) - int(np.isin(asked, self.gallery).any()))
        return self.gallery[np.argsort(-similarities, axis=1, kind="stable")[:, :k]]


def _sample(stored: _Stored, dataset: str) -> list[int]:
    """Queries of as many different classes, drawn by the dataset's name alone: the same for all arms and runs."""
    seed = int.from_bytes(hashlib.sha256(f"gallery/{dataset}".encode()).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(stored.queries)
    _, first = np.unique(stored.labels[order], return_index=True)
    return order[np.sort(first)[:QUERIES]].tolist()


def _pictures(
    choice: Choice, names: Sequence[str], data: Path | None, cache: Path | None, room: int
) -> tuple[tuple[str, ...], str]:
    """Each image as a data URI, and why there is none where there is none."""
    if len(names) > room:
        return ("",) * len(names), " Images are left out because the page has many tables; --only shows them for one."
    if datasets.describe(choice.name).needs_data and data is None:
        return ("",) * len(names), " To show images, pass their folder: --data FOLDER."
    try:
        dataset = datasets.load(choice.name, data=data, cache=cache, **choice.options)
        places = {key: place for place, key in enumerate(dataset.keys)}
        return tuple(_thumbnail(dataset, places[name]) for name in names), ""
    except (DatasetError, OSError) as error:
        return ("",) * len(names), f" Images cannot be shown: {error}."
    except KeyError as error:
        return ("",) * len(names), f" Images cannot be shown: this copy of {choice.name} has no {error}."


def _thumbnail(dataset: Dataset, place: int) -> str:
    image = dataset.read(place)
    kind = "png" if max(image.size) <= SMALL_PX else "jpeg"
    if kind == "jpeg":
        image = ImageOps.fit(image.convert("RGB"), (SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 72}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
