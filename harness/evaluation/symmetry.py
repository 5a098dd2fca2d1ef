"""Ranks of the positives of a set that is searched among itself, on a CPU or GPU: each similarity is computed once.

The similarity of i and j counts for both queries, so about half of the matrix product is enough. Rows are ordered by
class and cut into blocks of whole classes. Then

    1. the product of each block with itself contains all positives of its queries, which give the thresholds
       p_1 − tie ≥ p_2 − tie ≥ …: a candidate of another class that reaches the j-th comes before the j-th positive;
    2. in the product of two blocks, the entries that reach a threshold are counted by rows for the queries of one
       block, and by columns for those of the other.

Only the lowest threshold that matters is compared with all entries: that of the query's last positive whose rank can
still be within the depth asked for, or of its best. Few entries reach it, and only these are compared with the other
thresholds. Counts only grow, so a positive whose rank is beyond the depth never comes back.

A positive and a candidate may come from different products here. Rounding makes these differ by about 1e-7, far less
than the tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.form import moved
from harness.evaluation.metrics import BEYOND

BLOCK = 768  # rows on a CPU: smaller products are slower, and larger ones leave the caches before they are read
GPU_BLOCK = 4096  # rows on a GPU, where smaller products take less time than the calls that start them
LARGEST_CLASS = 512  # bounds the memory of a query's positives
ALIGNED = 16  # products and comparisons of other numbers of rows are slower

Array = Any  # of numpy or torch, as `_Numpy` or `_Torch` makes it


def ranks(
    vectors: Tensor, labels: np.ndarray, depths: np.ndarray, tie: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows, ranks) for all rows that have a positive, in blocks: the ranks (b, m) of their positives.

    vectors  (n, d) float32 of length 1; everything is computed on their device
    labels   (n,) integers from 0; at most LARGEST_CLASS rows may share one
    depths   (n,) integers ≥ 1: a rank beyond its query's depth is `BEYOND`, unless it is that of the best positive
    tie      a candidate of another class comes first if its similarity is smaller by no more than this

    Memory: a copy of the vectors, about 20 bytes for each pair of rows of one class, and a few blocks.
    """
    counts = np.bincount(labels)
    # A block is as wide as its largest class, so the classes of a block should be of similar size.
    order = np.lexsort((labels, counts[labels]))
    arrays = _arrays(vectors.device)
    rows = np.split(order, _borders(np.sort(counts[counts > 0]), arrays.block))
    padded = [_padded(vectors[torch.from_numpy(block).to(vectors.device)]) for block in rows]

    @torch.inference_mode()  # which belongs to a thread
    def begin(i: int) -> _Block:
        return _Block(arrays, arrays.product(padded[i], padded[i]), labels[rows[i]], depths[rows[i]], tie)

    @torch.inference_mode()
    def compare(block: _Block, i: int, j: int) -> None:
        similarities = arrays.product(padded[i], padded[j])
        block.count(similarities)
        blocks[j].count(similarities.T)

    with _threads(len(rows) if vectors.device.type == "cpu" else 1) as run:
        blocks = dict(enumerate(run(begin, range(len(rows)))))
        for i in range(len(rows)):
            block = blocks.pop(i)
            list(run(partial(compare, block, i), range(i + 1, len(rows))))
            found = np.flatnonzero(counts[labels[rows[i]]] > 1)
            if len(found):
                yield rows[i][found], block.ranks()[found]


def _borders(sizes: np.ndarray, most: int) -> list[int]:
    """Return where to cut rows of classes of these ascending sizes, so that each block holds whole classes.

    A block has at most `most` rows, or those of the largest class.
    """
    ends, borders = np.cumsum(sizes), [0]
    most = max(most, sizes[-1])
    while borders[-1] < ends[-1]:
        borders.append(int(ends[np.searchsorted(ends, borders[-1] + most, "right") - 1]))
    return borders[1:-1]


def _padded(vectors: Tensor) -> Tensor:
    """Return (b, d) with b a multiple of `ALIGNED`. The rows added are NaN, whose similarities reach no threshold."""
    missing = -len(vectors) % ALIGNED
    return torch.cat([vectors, vectors.new_full((missing, vectors.shape[1]), torch.nan)])


@contextmanager
def _threads(blocks: int) -> Iterator[Callable[..., Iterable]]:
    """Yield a map over as many threads as torch has; for few blocks, one that runs in this thread.

    Each product is computed by one thread, since those of this size wait for other threads longer than they gain.
    """
    threads = torch.get_num_threads()
    if threads == 1 or blocks < 2 * threads:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


class _Numpy:
    """Arrays in host memory. There numpy compares, counts and searches several times as fast as torch."""

    library: Any = np

    @property
    def block(self) -> int:
        """Return the number of rows of a block."""
        return BLOCK

    def put(self, array: np.ndarray) -> Array:
        return array

    def fetch(self, array: Array) -> np.ndarray:
        return array

    def product(self, rows: Tensor, columns: Tensor) -> Array:
        """Return the similarities (b, c) of rows (b, d) and columns (c, d)."""
        return torch.mm(rows, columns.T).numpy()

    def descending(self, values: Array) -> Array:
        return -np.sort(-values, axis=1)

    def reaching(self, similarities: Array, least: Array) -> tuple[Array, Array]:
        """Return which similarities (b, c) reach the threshold (b,) of their row, and how many of each row do.

        The answers are bytes of 0 or 1, in the memory order of the similarities, whose sides are multiples of eight.
        They are added eight at a time, as words, and no more than 255 words, so that no byte overflows.
        """
        reach = similarities >= least[:, None]
        axis = 1 if reach.flags.c_contiguous else 0
        words = (reach if axis else reach.T).view(np.uint64)
        sums = np.add.reduceat(words, np.arange(0, words.shape[axis], 255), axis=axis).view(np.uint8)
        return reach, sums.sum(axis=axis, dtype=np.int64)

    def places(self, answers: Array) -> tuple[Array, Array]:
        """Return rows and columns of the true answers (b, c), row by row."""
        return np.divmod(np.flatnonzero(answers), answers.shape[1])

    def add_one(self, to: Array, places: Array) -> None:
        """Add 1 at each of the places of the flat array, which may repeat."""
        np.add.at(to.reshape(-1), places, 1)


@dataclass(frozen=True)
class _Torch:
    """Arrays on a GPU, with the methods of `_Numpy`."""

    device: torch.device
    library: Any = torch

    @property
    def block(self) -> int:
        return GPU_BLOCK

    def put(self, array: np.ndarray) -> Array:
        return moved(torch.from_numpy(array), self.device)

    def fetch(self, array: Array) -> np.ndarray:
        return array.cpu().numpy()

    def product(self, rows: Tensor, columns: Tensor) -> Array:
        return torch.mm(rows, columns.T)

    def descending(self, values: Array) -> Array:
        return values.sort(dim=1, descending=True).values

    def reaching(self, similarities: Array, least: Array) -> tuple[Array, Array]:
        reach = similarities >= least[:, None]
        return reach, reach.sum(dim=1)

    def places(self, answers: Array) -> tuple[Array, Array]:
        return answers.nonzero(as_tuple=True)

    def add_one(self, to: Array, places: Array) -> None:
        to.view(-1).index_add_(0, places, torch.ones_like(places))


def _arrays(device: torch.device) -> _Numpy | _Torch:
    return _Numpy() if device.type == "cpu" else _Torch(device)


class _Block:
    """The queries of some classes, and how many candidates of other classes come before each of their positives.

    `alive` (b,) is how many positives of each query can still have a rank within the depth. Other positives are not
    followed, except the best. `tally` (b, m) holds how many candidates reached the threshold at this place and not
    the one before: its cumulative sum counts those that come before the positive.
    """

    def __init__(
        self, arrays: _Numpy | _Torch, similarities: Array, labels: np.ndarray, depths: np.ndarray, tie: float
    ):
        """Take the similarities (b, b) of the queries among themselves, which are overwritten.

        `labels` and `depths` are those of at most b queries, where a class follows another. The rows after the last
        query get no positive.
        """
        self.arrays, self.lock, count = arrays, Lock(), len(similarities)
        missing = count - len(labels)
        labels = np.append(labels, -1 - np.arange(missing))
        _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
        first, size = first[inverse, None], size[inverse, None]
        places, rows = np.arange(size.max()), np.arange(count)[:, None]
        members = np.where(places < size, first + places, rows)

        put = arrays.put
        self.rows, self.depths = put(rows), put(np.append(depths, np.ones(missing, int)))
        self.relevant, self.places = put(size[:, 0] - 1), put(places[1:])
        members, size = put(members), put(size)
        positives = similarities[self.rows, members]
        positives[members == self.rows] = -np.inf
        similarities[self.rows, members] = -np.inf
        self.thresholds = arrays.descending(positives)[:, :-1] - tie
        self.keys = self._keys(self.rows, self.thresholds).reshape(-1)
        self.thresholds[self.places >= size] = np.inf
        self.tally = arrays.library.zeros_like(self.thresholds, dtype=arrays.library.int64)
        if len(self.places):
            self.alive = self._within_depth(similarities)
            self.count(similarities)

    def _within_depth(self, similarities: Array) -> Array:
        """Return how many positives of each query (b,) have ranks within the depth, among these candidates alone."""
        library = self.arrays.library
        low, high = library.zeros_like(self.relevant), library.minimum(self.relevant, self.depths)
        while (low < high).any():
            middle = (low + high + 1) // 2
            _, counts = self.arrays.reaching(similarities, self._threshold(middle))
            within = (middle + counts <= self.depths) | (middle == 0)
            low, high = library.where(within, middle, low), library.where(within, high, middle - 1)
        return low

    def _threshold(self, place: Array) -> Array:
        """Return the threshold (b,) of the positive at `place` (b,), from 1."""
        return self.thresholds[self.rows[:, 0], place.clip(1) - 1]

    def _keys(self, queries: Array, similarities: Array) -> Array:
        """Return int64 that ascend with the query and, within a query, as the similarity descends; ties are equal."""
        # 0 − x is never −0, whose bits differ from those of 0.
        bits = (0 - similarities).view(self.arrays.library.int32)
        return (queries << 32) + (bits ^ ((bits >> 31) & (2**31 - 1)))

    def count(self, similarities: Array) -> None:
        """Count candidates (c,) of other classes, given their similarities (b, c) to the queries."""
        if not len(self.places):
            return
        alive = self.alive  # another thread may replace it
        reach, counts = self.arrays.reaching(similarities, self._threshold(alive))
        with self.lock:
            self.tally[:, 0] += counts * (alive <= 1)
        several, _ = self.arrays.places(((counts > 0) & (alive > 1))[:, None])
        if not len(several):
            return
        query, other = self.arrays.places(reach[several])
        query = several[query]
        found = self.arrays.library.searchsorted(self.keys, self._keys(query, similarities[query, other]))
        with self.lock:
            self.arrays.add_one(self.tally, found)
            within = self.places + self.tally[several].cumsum(axis=1) <= self.depths[several, None]
            alive = self.alive + 0  # a copy
            alive[several] = (within & (self.places <= alive[several, None])).sum(axis=1)
            self.alive = alive

    def ranks(self) -> np.ndarray:
        """Return the ranks (b, m) of the positives, after all candidates have been counted."""
        ranks = self.places + self.tally.cumsum(axis=1)
        ranks[self.places > self.alive.clip(1)[:, None]] = BEYOND
        return self.arrays.fetch(ranks)
