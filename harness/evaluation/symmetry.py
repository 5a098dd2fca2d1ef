"""Ranks of the positives of a set that is searched among itself, on a CPU: each similarity is computed once.

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
from functools import partial
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from harness.evaluation.metrics import BEYOND

BLOCK = 768  # rows: smaller products are slower, and larger ones leave the caches before they are read
LARGEST_CLASS = 512  # bounds the memory of a query's positives
ALIGNED = 16  # products and comparisons of other numbers of rows are slower


def ranks(
    vectors: Tensor, labels: np.ndarray, depths: np.ndarray, tie: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows, ranks) for all rows that have a positive, in blocks: the ranks (b, m) of their positives.

    vectors  (n, d) float32 of length 1, on the CPU
    labels   (n,) integers from 0; at most LARGEST_CLASS rows may share one
    depths   (n,) integers ≥ 1: a rank beyond its query's depth is `BEYOND`, unless it is that of the best positive
    tie      a candidate of another class comes first if its similarity is smaller by no more than this

    Memory: a copy of the vectors, about 20 bytes for each pair of rows of one class, and a few blocks.
    """
    counts = np.bincount(labels)
    # A block is as wide as its largest class, so the classes of a block should be of similar size.
    order = np.lexsort((labels, counts[labels]))
    rows = np.split(order, _borders(np.sort(counts[counts > 0])))
    padded = [_padded(vectors[torch.from_numpy(block)]) for block in rows]

    def begin(i: int) -> _Block:
        return _Block(_product(padded[i], padded[i]), labels[rows[i]], depths[rows[i]], tie)

    def compare(i: int, j: int) -> None:
        similarities = _product(padded[i], padded[j])
        blocks[i].count(similarities)
        blocks[j].count(similarities.T)

    with _threads(len(rows)) as run:
        blocks = list(run(begin, range(len(rows))))
        for i, block in enumerate(blocks):
            list(run(partial(compare, i), range(i + 1, len(blocks))))
            found = np.flatnonzero(block.relevant)
            if len(found):
                yield rows[i][found], block.ranks()[found]


def _borders(sizes: np.ndarray) -> list[int]:
    """Return where to cut rows of classes of these ascending sizes, so that each block holds whole classes."""
    ends, borders = np.cumsum(sizes), [0]
    most = max(BLOCK, sizes[-1])
    while borders[-1] < ends[-1]:
        borders.append(int(ends[np.searchsorted(ends, borders[-1] + most, "right") - 1]))
    return borders[1:-1]


def _padded(vectors: Tensor) -> Tensor:
    """Return (b, d) with b a multiple of `ALIGNED`. The rows added are NaN, whose similarities reach no threshold."""
    missing = -len(vectors) % ALIGNED
    return torch.cat([vectors, vectors.new_full((missing, vectors.shape[1]), torch.nan)])


def _product(rows: Tensor, columns: Tensor) -> np.ndarray:
    with torch.inference_mode():  # which belongs to a thread
        return torch.mm(rows, columns.T).numpy()


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


class _Block:
    """The queries of some classes, and how many candidates of other classes come before each of their positives.

    `alive` (b,) is how many positives of each query can still have a rank within the depth. Other positives are not
    followed, except the best. `tally` (b, m) holds how many candidates reached the threshold at this place and not
    the one before: its cumulative sum counts those that come before the positive.
    """

    def __init__(self, similarities: np.ndarray, labels: np.ndarray, depths: np.ndarray, tie: float):
        """Take the similarities (b, b) of the queries among themselves, which are overwritten.

        `labels` and `depths` are those of at most b queries, where a class follows another. The rows after the last
        query get no positive.
        """
        missing, rows = len(similarities) - len(labels), np.arange(len(similarities))[:, None]
        labels = np.append(labels, -1 - np.arange(missing))
        _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
        first, size = first[inverse, None], size[inverse, None]
        places = np.arange(size.max())
        members = np.where(places < size, first + places, rows)
        positives = similarities[rows, members]
        positives[members == rows] = -np.inf
        similarities[rows, members] = -np.inf

        self.depths, self.lock = np.append(depths, np.ones(missing, int)), Lock()
        self.relevant, self.places = size[:, 0] - 1, places[1:]
        self.thresholds = -np.sort(-positives, axis=1)[:, :-1] - np.float32(tie)
        self.keys = _keys(rows, self.thresholds).ravel()
        self.thresholds[self.places >= size] = np.inf
        self.tally = np.zeros(self.thresholds.shape, np.int64)
        if len(self.places):
            self.alive = self._within_depth(similarities)
            self.count(similarities)

    def _within_depth(self, similarities: np.ndarray) -> np.ndarray:
        """Return how many positives of each query (b,) have ranks within the depth, among these candidates alone."""
        low, high = np.zeros_like(self.relevant), np.minimum(self.relevant, self.depths)
        while (low < high).any():
            middle = (low + high + 1) // 2
            _, counts = _reaching(similarities, self._threshold(middle))
            within = (middle + counts <= self.depths) | (middle == 0)
            low, high = np.where(within, middle, low), np.where(within, high, middle - 1)
        return low

    def _threshold(self, place: np.ndarray) -> np.ndarray:
        """Return the threshold (b,) of the positive at `place` (b,), from 1."""
        return self.thresholds[np.arange(len(place)), np.maximum(place, 1) - 1]

    def count(self, similarities: np.ndarray) -> None:
        """Count candidates (c,) of other classes, given their similarities (b, c) to the queries."""
        if not len(self.places):
            return
        alive = self.alive  # another thread may replace it
        reach, counts = _reaching(similarities, self._threshold(alive))
        with self.lock:
            self.tally[:, 0] += np.where(alive > 1, 0, counts)
        several = np.flatnonzero((counts > 0) & (alive > 1))
        if not len(several):
            return
        query, other = np.divmod(np.flatnonzero(reach[several]), reach.shape[1])
        query = several[query]
        found = np.searchsorted(self.keys, _keys(query, similarities[query, other]))
        with self.lock:
            np.add.at(self.tally.reshape(-1), found, 1)
            within = self.places + self.tally[several].cumsum(axis=1) <= self.depths[several, None]
            alive = self.alive.copy()
            alive[several] = (within & (self.places <= alive[several, None])).sum(axis=1)
            self.alive = alive

    def ranks(self) -> np.ndarray:
        """Return the ranks (b, m) of the positives, after all candidates have been counted."""
        ranks = self.places + self.tally.cumsum(axis=1)
        ranks[self.places > np.maximum(self.alive, 1)[:, None]] = BEYOND
        return ranks


def _keys(queries: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """Return int64 that ascend with the query and, within a query, as the similarity descends; ties are equal."""
    bits = (np.float32(0) - similarities).view(np.int32)  # 0 − x is never −0, whose bits differ from those of 0
    return (queries.astype(np.int64) << 32) + (bits ^ ((bits >> 31) & np.int32(2**31 - 1)))


def _reaching(similarities: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which similarities (b, c) reach the threshold (b,) of their row, and how many of each row do.

    The answers are bytes of 0 or 1, in the memory order of the similarities, whose sides are multiples of eight. They
    are added eight at a time, as words, and no more than 255 words, so that no byte overflows.
    """
    reach = similarities >= least[:, None]
    axis = 1 if reach.flags.c_contiguous else 0
    words = (reach if axis else reach.T).view(np.uint64)
    sums = np.add.reduceat(words, np.arange(0, words.shape[axis], 255), axis=axis).view(np.uint8)
    return reach, sums.sum(axis=axis, dtype=np.int64)
