"""Image galleries of the nearest neighbours that arms retrieve.

A gallery is computed from the embeddings that trials saved. It shows the nearest images to a sample of test queries,
the same for every arm, with correct and wrong ones marked. If the dataset cannot be opened, it shows names.
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
from harness.data.datasets import DatasetError
from harness.errors import first_few
from harness.leaderboard.board import Block, Board, record_ids
from harness.leaderboard.collection import Collection
from harness.reports import wording
from harness.runs.outcomes import UNREADABLE
from harness.runs.record import Record

QUERIES = 8  # per block
NEIGHBOURS = 8  # per query
MOST_ARMS = 16  # per block: more than anyone compares at once
MOST_IMAGES = 700  # per page, about a megabyte; later blocks show names
SIDE_PX = 56
SMALL_PX = 64  # images up to this size are stored losslessly, larger ones as JPEG


@dataclass(frozen=True)
class BlockGallery:
    """The gallery of one block.

    block     the number of the block on its leaderboard
    seed      the training seed of all arms; with cross-validation, one fold of it is shown
    arms      the arms shown
    queries   (image, for each arm ((image, correct), …) nearest first), with images by number
    names     the names of the images
    images    the images as data URIs, "" if they cannot be read
    """

    block: int
    seed: int
    arms: tuple[str, ...]
    queries: tuple[tuple[int, tuple[tuple[tuple[int, bool], ...], ...]], ...]
    names: tuple[str, ...]
    images: tuple[str, ...]
    note: str

    def content(self) -> dict[str, Any]:
        """Return the data of the gallery for the page."""
        return {
            "block": self.block,
            "arms": self.arms,
            "queries": [
                [query, [[[i, int(r)] for i, r in neighbours] for neighbours in neighbours_by_arm]]
                for query, neighbours_by_arm in self.queries
            ],
            "names": self.names,
            "images": self.images,
            "note": self.note,
        }


def with_gallery(board: Board, collection: Collection, data: Path | None = None, cache: Path | None = None) -> Board:
    """Return the leaderboard with a gallery for each block whose trials saved their embeddings.

    data   the folder of the dataset, if the dataset needs one
    cache  the cache folder of datasets
    """
    galleries, images_left = [], MOST_IMAGES
    for number, block in enumerate(board.blocks):
        gallery = _gallery_of(number, block, collection, data, cache, images_left)
        if gallery is not None:
            galleries.append(gallery)
            images_left -= sum(map(bool, gallery.images))
    return replace(board, gallery=tuple(galleries))


def _gallery_of(
    number: int, block: Block, collection: Collection, data: Path | None, cache: Path | None, images_left: int
) -> BlockGallery | None:
    """Return the gallery of a block; None if no trained trial saved embeddings."""
    records_by_seed: dict[tuple[int, int], dict[str, Record]] = {}
    for row in block.rows:
        for id in record_ids(row):
            if id in collection.with_queries:
                record = collection.by_id[id]
                records_by_seed.setdefault((record.trial.seed, record.trial.fold or 0), {})[wording.full(row)] = (
                    record
                )
    if not any(record.level != "floor" for records in records_by_seed.values() for record in records.values()):
        return None
    seed, fold = max(
        records_by_seed,
        key=lambda seed_and_fold: (len(records_by_seed[seed_and_fold]), -seed_and_fold[0], -seed_and_fold[1]),
    )
    chosen = list(records_by_seed[seed, fold].items())[:MOST_ARMS]
    stored, damaged = {}, []
    for arm, record in chosen:
        try:
            stored[arm] = _Embeddings.read(collection.run_by_id[record.id].per_query(record.id))
        except UNREADABLE:
            damaged.append(arm)
    if not stored:
        return None
    first = next(iter(stored.values()))
    stored = {arm: one for arm, one in stored.items() if np.array_equal(one.ids, first.ids)}
    sampled = _sample(first, block.dataset)
    neighbours = {arm: one.nearest(sampled) for arm, one in stored.items()}
    numbers: dict[int, int] = {}
    queries = tuple(
        (
            numbers.setdefault(int(image), len(numbers)),
            tuple(
                tuple(
                    (numbers.setdefault(int(i), len(numbers)), bool(first.labels[i] == first.labels[image]))
                    for i in neighbours[arm][place]
                )
                for arm in stored
            ),
        )
        for place, image in enumerate(sampled)
    )
    names = tuple(str(first.ids[i]) for i in numbers)
    trial = chosen[0][1].trial
    images, reason = _pictures(trial.dataset, names, data, cache, images_left)
    note = f"{len(queries)} random test queries, the same for all arms; training {trial.seed_and_fold}.{reason}"
    if damaged:
        note += f" Left out, because the file of their embeddings is damaged: {first_few(damaged)}."
    return BlockGallery(number, seed, tuple(stored), queries, names, images, note)


@dataclass(frozen=True)
class _Embeddings:
    """The test embeddings of a trial.

    embeddings  normalised, (n, d)
    ids         the names of the images, (n,)
    labels      their classes, (n,)
    queries     the indices of images that are queries
    gallery     the indices of images that may be retrieved
    """

    embeddings: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "_Embeddings":
        with np.load(path, allow_pickle=False) as stored:
            embeddings = stored["embeddings"].astype(np.float32)
            ids, labels, queries = stored["ids"], stored["labels"], stored["queries"]
            roles = stored.get("roles")
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        gallery = np.arange(len(ids)) if roles is None else np.flatnonzero(roles == "gallery")
        return cls(embeddings, ids, labels, np.flatnonzero(np.isin(ids, queries)), gallery)

    def nearest(self, queries: Sequence[int]) -> np.ndarray:
        """Return the k ≤ NEIGHBOURS nearest images of each query, (queries, k). A query is excluded by its index."""
        similarities = self.embeddings[queries] @ self.embeddings[self.gallery].T
        similarities[np.asarray(queries)[:, None] == self.gallery] = -np.inf
        k = min(NEIGHBOURS, len(self.gallery) - int(np.isin(queries, self.gallery).any()))
        return self.gallery[np.argsort(-similarities, axis=1, kind="stable")[:, :k]]


def _sample(stored: _Embeddings, dataset: str) -> list[int]:
    """Return random queries of different classes. The seed is the name of the dataset, so all arms and runs agree."""
    seed = int.from_bytes(hashlib.sha256(f"gallery/{dataset}".encode()).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(stored.queries)
    _, first = np.unique(stored.labels[order], return_index=True)
    return order[np.sort(first)[:QUERIES]].tolist()


def _pictures(
    choice: Choice, names: Sequence[str], data: Path | None, cache: Path | None, images_left: int
) -> tuple[tuple[str, ...], str]:
    """Return each image as a data URI, and the reason if there are no images."""
    if len(names) > images_left:
        return ("",) * len(names), " Images are left out because the page has many tables; --only shows them for one."
    if datasets.describe(choice.name).needs_data and data is None:
        return ("",) * len(names), " To show images, pass their folder: --data FOLDER."
    try:
        dataset = datasets.load(choice.name, data=data, cache=cache, **choice.options)
        places = {key: place for place, key in enumerate(dataset.keys)}
        return tuple(thumbnail(dataset.read(places[name])) for name in names), ""
    except (DatasetError, OSError) as error:
        return ("",) * len(names), f" Images cannot be shown: {error}."
    except KeyError as error:
        return ("",) * len(names), f" Images cannot be shown: this copy of {choice.name} has no {error}."


def thumbnail(image: Image.Image, side_px: int = SIDE_PX) -> str:
    """Return an image as a data URI: as it is if it is small, else as a square of this side."""
    kind = "png" if max(image.size) <= SMALL_PX else "jpeg"
    if kind == "jpeg":
        image = ImageOps.fit(image.convert("RGB"), (side_px, side_px), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 72}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
