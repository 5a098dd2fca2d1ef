"""Exact retrieval: the scores of an embedding, on a CPU or GPU, with torch or faiss.

Every query is compared with every candidate. The similarities of a block of queries to the whole gallery are one
matrix product. Values are compared only with others of the same product, because a dot product that is computed
separately differs in its last bits. Then, for each query,

    1. its own entries (same index or equal id) are removed from the row; no rank is skipped instead;
    2. its R positives are removed from the row, best first: p_1 ≥ p_2 ≥ … ≥ p_R;
    3. the `depth` largest of the remaining entries, all of other classes, are found;
    4. the rank of the j-th positive is j + the number of other-class candidates whose similarity is ≥ p_j − 1e-6.

So other classes come first among ties, and a constant embedding scores 0 instead of chance or 100 %. Because the
positives are removed before the search, a group of ties cannot hide anything at the search depth. If fewer than
`depth` candidates come before a positive, the count is complete. Otherwise the rank lies beyond `depth`, which is all
that MAP@R (depth ≥ R) needs to know. R@K needs the best positive's rank at any depth: where the search did not settle
it, the whole row is counted. R@1000 therefore costs as much as R@1.

A set that is searched among itself goes another way to the same ranks, which takes half of the product: see
`symmetry.py`. Its blocks hold whole classes, so a set with a very large class searches whole rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from baselines.numerics import full_precision
from harness.evaluation import metrics, symmetry

TIE = 1e-6
BLOCK_BYTES = 256 * 2**20
MAX_QUERIES = 1024  # larger blocks multiply no faster
POSITIVE_BYTES = 64  # memory of a block for each positive: index pair, similarity, rank, precision
HEAP_DEPTH = 64  # above this depth, selection by partition is faster than faiss' heaps
MIN_DEPTH = 16  # settles most best positives at almost no cost, so that few whole rows are counted


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one embedding.

    values      {"R@1": 0.637, …, "MAP@R": …, "R-Precision": …}, each in [0, 1]: means of `per_query`
    per_query   {"R@1": bool (q,), …, "MAP@R": float32 (q,)}, in the order of `queries`
    best_ranks  (q,) int64 ≥ 1: the rank of each query's best positive; R@K for any K is mean(best_ranks <= K)
    queries     (q,) int64: the rows of `embeddings` that have at least one positive
    excluded    how many queries have no positive and are therefore left out of the means
    engine      "faiss" or "torch": what computed the scores
    """

    values: dict[str, float]
    per_query: dict[str, np.ndarray]
    best_ranks: np.ndarray
    queries: np.ndarray
    excluded: int
    engine: str


def evaluate(
    embeddings,
    labels,
    ks: Sequence[int] = (1, 2, 4, 8),
    gallery=None,
    gallery_labels=None,
    query_ids: Sequence[Hashable] | None = None,
    gallery_ids: Sequence[Hashable] | None = None,
    *,
    engine: str | None = None,
) -> Evaluation:
    """Score embeddings by exact cosine similarity: R@K, MAP@R, R-Precision and all other metrics in `metrics/`.

    embeddings      (n, d) float16, bfloat16, 32 or 64, numpy or torch; l2-normalised here. A CUDA tensor is scored
                    on its device, everything else on the CPU
    labels          (n,) integers or strings; the candidates with the query's label are its positives
    ks              the K of R@K, each from 1 to the number of candidates
    gallery         (g, d): search here instead of among `embeddings` (In-Shop's protocol), with gallery_labels (g,)
    query_ids       (n,), and gallery_ids (g,): a candidate whose id equals the query's is the query itself and is
                    left out. Without a gallery the query's own row is always left out; query_ids leave out copies too
    engine          "faiss" or "torch"; by default torch on a GPU and for a set that is searched among itself, unless
                    a class is larger than 512, else faiss where it is installed

    Raises ValueError for zero or non-finite vectors, a K beyond the number of candidates, a gallery that equals the
    query array without ids, sizes that do not match, and if no query has a positive.
    """
    ks = _checked_ks(ks)
    task = _task(embeddings, labels, gallery, gallery_labels, query_ids, gallery_ids)
    kept = np.flatnonzero(task.relevant)
    if not len(kept):
        raise ValueError(f"labels: none of the {len(task.relevant)} queries has a positive among its candidates")
    candidates = int(task.candidates[kept].min())
    if ks and ks[-1] > candidates:
        raise ValueError(f"ks: R@{ks[-1]} needs {ks[-1]} candidates, a query has only {candidates}")

    all_metrics = metrics.load_all()
    columns = {title: (metric, options) for metric in all_metrics for title, options in metric.columns(ks).items()}
    per_query = {}
    best = np.empty(len(kept), np.int64)
    used = _engine(engine, task)
    blocks = _symmetric_ranks if used == "torch" and task.symmetric else partial(_ranks, used)
    with torch.inference_mode(), full_precision(task.gallery.device):
        for rows, ranks in blocks(task, kept, all_metrics, ks):
            best[rows] = ranks[:, 0]
            for title, (metric, options) in columns.items():
                scores = metric.compute(ranks, task.relevant[kept[rows]], **options)
                kind = np.bool_ if scores.dtype == np.bool_ else np.float32
                per_query.setdefault(title, np.empty(len(kept), kind))[rows] = scores
    values = {title: float(scores.mean(dtype=np.float64)) for title, scores in per_query.items()}
    return Evaluation(values, per_query, best, kept, len(task.relevant) - len(kept), used)


# --- queries and candidates -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Members:
    """The gallery rows of every group (a class or an id), so that those of a query's group need no search."""

    order: np.ndarray
    first: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, gallery: np.ndarray) -> _Members:
        """Return the members for group numbers of queries (n,) and gallery (g,); a query's group may have none."""
        order = np.argsort(gallery, kind="stable")
        first = np.searchsorted(gallery, queries, "left", sorter=order)
        return cls(order, first, np.searchsorted(gallery, queries, "right", sorter=order) - first)

    def pairs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (row in `queries`, gallery row, position in its group), one entry per member of a query's group."""
        count = self.count[queries]
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return (
            np.repeat(np.arange(len(queries)), count),
            self.order[np.repeat(self.first[queries], count) + place],
            place,
        )


@dataclass(frozen=True)
class _Task:
    """Queries and gallery, and which candidates are the query itself or its positives.

    `labels` are those of a set that is searched among itself, where each query leaves out its own row alone.
    """

    queries: Tensor
    gallery: Tensor
    same_label: _Members
    same_id: _Members
    relevant: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray | None

    @property
    def symmetric(self) -> bool:
        """Whether each similarity can be computed once: among a set itself, and no class is too large."""
        return self.labels is not None and int(self.same_label.count.max()) <= symmetry.LARGEST_CLASS


def _task(embeddings, labels, gallery, gallery_labels, query_ids, gallery_ids) -> _Task:
    alone = gallery is None and query_ids is None
    queries = candidates = _normalized(embeddings, "embeddings")
    labels = candidate_labels = _checked_labels(labels, len(queries), "labels")
    if gallery is None:
        if gallery_labels is not None or gallery_ids is not None:
            raise ValueError("gallery_labels and gallery_ids need a gallery, and none is given")
        gallery_ids = query_ids = range(len(queries)) if query_ids is None else query_ids
    else:
        if gallery_labels is None:
            raise ValueError("a gallery needs gallery_labels")
        candidates = _normalized(gallery, "gallery").to(queries.device)
        candidate_labels = _checked_labels(gallery_labels, len(candidates), "gallery_labels")
        if candidates.shape[1] != queries.shape[1]:
            raise ValueError(f"gallery has {candidates.shape[1]} dimensions, embeddings have {queries.shape[1]}")
        if (query_ids is None) != (gallery_ids is None):
            raise ValueError("query_ids and gallery_ids go together: one of them is missing")
        if query_ids is None:
            if labels == candidate_labels and bool(((queries * candidates).sum(dim=1) > 1 - TIE).all()):
                raise ValueError(
                    "the gallery is the query array itself, so every query would find itself first: "
                    "omit gallery, or give query_ids and gallery_ids"
                )
            query_ids, gallery_ids = [None] * len(queries), range(len(candidates))
    ids, gallery_ids = _numbered(
        _checked_ids(query_ids, len(queries), "query_ids"), _checked_ids(gallery_ids, len(candidates), "gallery_ids")
    )
    labels, candidate_labels = _numbered(labels, candidate_labels)
    classes = max(labels.max(), candidate_labels.max()) + 1
    same_label, same_id = _Members.of(labels, candidate_labels), _Members.of(ids, gallery_ids)
    itself = _Members.of(ids * classes + labels, gallery_ids * classes + candidate_labels)
    relevant, count = same_label.count - itself.count, len(candidates) - same_id.count
    return _Task(queries, candidates, same_label, same_id, relevant, count, labels if alone else None)


def _numbered(first: Sequence, second: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Number the values from 0, equal values alike within and across both sequences. 1 and "1" are not equal."""
    seen: dict[Hashable, int] = {}
    numbers = np.fromiter((seen.setdefault(value, len(seen)) for value in chain(first, second)), np.int64)
    return numbers[: len(first)], numbers[len(first) :]


def _checked_ids(ids, n: int, name: str) -> Sequence[Hashable]:
    ids = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else ids
    if len(ids) != n:
        raise ValueError(f"{name} has {len(ids)} entries for {n} vectors")
    return ids


def _checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not np.iterable(ks):
        raise ValueError(f"ks: {ks!r} is not a list of K; write ks=({ks!r},)")
    ks = tuple(ks)
    wrong = [k for k in ks if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1]
    if wrong:
        raise ValueError(f"ks: {wrong[0]!r} is not a whole number from 1")
    return tuple(sorted({int(k) for k in ks}))


def _checked_labels(labels, n: int, name: str) -> list[Hashable]:
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} has shape {labels.shape} for {n} vectors; expected ({n},)")
    if labels.dtype.kind not in "biuUSO":
        raise ValueError(f"{name} are {labels.dtype}; expected integers or strings")
    return labels.tolist()


def _normalized(embeddings, name: str) -> Tensor:
    """Return (n, d) float32 of length 1 on the device of `embeddings`, whatever the scale of the input."""
    if isinstance(embeddings, Tensor):
        vectors = embeddings.detach()
    else:
        array = np.ascontiguousarray(embeddings)
        vectors = torch.from_numpy(array if array.flags.writeable else array.copy())
    if vectors.ndim != 2 or not vectors.numel():
        raise ValueError(f"{name} has shape {tuple(vectors.shape)}; expected (n, d) with n ≥ 1 and d ≥ 1")
    if not vectors.is_floating_point():
        raise ValueError(f"{name} is {vectors.dtype}; expected floating point")
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    largest = vectors.abs().amax(dim=1, keepdim=True)
    for wrong, problem in ((~largest.isfinite(), "not finite"), (largest == 0, "zero")):
        rows = wrong.flatten().nonzero().flatten()
        if len(rows):
            raise ValueError(
                f"{name}: {len(rows)} of {len(vectors)} vectors {problem}, the first at index {int(rows[0])}"
            )
    scaled = vectors / largest
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True, dtype=torch.float64)
    return (scaled / lengths.to(scaled.dtype)).float().contiguous()


# --- ranks ----------------------------------------------------------------------------------------


Blocks = Iterator[tuple[np.ndarray, np.ndarray]]  # rows in `kept`, and the ranks (rows, m) of their positives


def _symmetric_ranks(
    task: _Task, kept: np.ndarray, all_metrics: tuple[metrics.Metric, ...], ks: tuple[int, ...]
) -> Blocks:
    """Yield the ranks of a set that is searched among itself."""
    assert task.labels is not None
    depths = _depth(all_metrics, task.relevant, ks, len(task.gallery))
    for rows, ranks in symmetry.ranks(task.gallery, task.labels, depths, TIE):
        yield np.searchsorted(kept, rows), ranks


def _ranks(
    engine: str, task: _Task, kept: np.ndarray, all_metrics: tuple[metrics.Metric, ...], ks: tuple[int, ...]
) -> Blocks:
    """Yield the ranks of any queries in any gallery.

    A block holds queries of similar R, so that one large class does not deepen the search of all others.
    """
    with _search(engine, task.gallery) as search:
        remaining = np.argsort(task.relevant[kept], kind="stable")
        while len(remaining):
            most = int(task.relevant[kept[remaining[: search.rows][-1]]])
            rows, remaining = np.split(remaining, [min(search.rows, max(1, BLOCK_BYTES // (POSITIVE_BYTES * most)))])
            depth = max(MIN_DEPTH, int(_depth(all_metrics, np.array(most), ks, len(task.gallery))))
            yield rows, _block_ranks(search, task, kept[rows], min(depth, len(task.gallery)))


def _depth(
    all_metrics: tuple[metrics.Metric, ...], relevant: np.ndarray, ks: tuple[int, ...], candidates: int
) -> np.ndarray:
    """Return how deep the metrics must know the ranks of queries with so many positives: as many numbers from 1."""
    needs = {"best": 1, "relevant": relevant, "k": max(ks, default=1), "all": candidates}
    return reduce(np.maximum, (needs[metric.depth] for metric in all_metrics), np.ones_like(relevant))


def _block_ranks(search: _TorchSearch, task: _Task, queries: np.ndarray, depth: int) -> np.ndarray:
    """Return the ranks (b, m) of the positives of `queries`: exact up to `depth`, the first column at any depth."""
    device = task.queries.device
    relevant = task.relevant[queries]
    similarities = search.similarities(task.queries[torch.from_numpy(queries).to(device)])

    row, column, _ = (torch.from_numpy(part).to(device) for part in task.same_id.pairs(queries))
    similarities[row, column] = -torch.inf
    row, column, position = (torch.from_numpy(part).to(device) for part in task.same_label.pairs(queries))
    positives = similarities.new_full((len(queries), int(task.same_label.count[queries].max())), -torch.inf)
    positives[row, position] = similarities[row, column]
    similarities[row, column] = -torch.inf
    positives = positives.sort(dim=1, descending=True).values[:, : relevant.max()]

    thresholds = positives - TIE
    others = search.largest(similarities, depth)
    before = depth - torch.searchsorted(others, thresholds)
    ranks = before + torch.arange(1, before.shape[1] + 1, device=device)
    ranks[before == depth] = metrics.BEYOND
    ranks[torch.isinf(positives)] = metrics.BEYOND
    unsettled = (before[:, 0] == depth).nonzero().flatten()
    if len(unsettled):
        ranks[unsettled, 0] = 1 + search.at_least(similarities, unsettled, thresholds[unsettled, 0])
    return ranks.cpu().numpy()


# --- engines --------------------------------------------------------------------------------------


class _TorchSearch:
    """Compute products and selections with torch, on the device of the gallery."""

    name = "torch"

    def __init__(self, gallery: Tensor):
        self.gallery = gallery
        self.rows = min(MAX_QUERIES, max(1, BLOCK_BYTES // (4 * len(gallery))))
        # One buffer for all blocks: new pages for each would cost a tenth of the product.
        self.block = gallery.new_empty((self.rows, len(gallery)))

    def similarities(self, queries: Tensor) -> Tensor:
        """Return (b, g) for queries (b, d), b ≤ rows, in a buffer that the next call overwrites."""
        return torch.mm(queries, self.gallery.T, out=self.block[: len(queries)])

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        """Return the largest of each row, (b, depth), ascending. May reorder the entries of each row."""
        return similarities.topk(depth, dim=1).values.flip(1)

    def at_least(self, similarities: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
        """Return how many similarities of each of these rows reach its threshold, (r,)."""
        return (similarities[rows] >= thresholds[:, None]).sum(dim=1)


class _CpuSearch(_TorchSearch):
    """Select and count with numpy, which is several times faster on a CPU than torch's topk and comparisons."""

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        first = similarities.shape[1] - depth

        def select(rows: np.ndarray) -> np.ndarray:
            rows.partition(first, axis=1)
            return np.sort(rows[:, first:], axis=1)

        parts = np.array_split(similarities.numpy(), torch.get_num_threads())
        return torch.from_numpy(np.concatenate(_in_threads(select, parts)))

    def at_least(self, similarities: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
        block, chosen, least = similarities.numpy(), rows.numpy(), thresholds.numpy()

        def count(part: np.ndarray) -> list[int]:
            return [int(np.count_nonzero(block[chosen[i]] >= least[i])) for i in part]

        parts = np.array_split(np.arange(len(chosen)), torch.get_num_threads())
        return torch.tensor(list(chain.from_iterable(_in_threads(count, parts))))


class _FaissSearch(_CpuSearch):
    """Compute products with faiss' BLAS and select with its heaps, in as many threads as torch has."""

    name = "faiss"

    def __init__(self, gallery: Tensor, faiss):
        super().__init__(gallery)
        self.faiss = faiss
        # Faiss' map x → A x, with the gallery as A, is the only public way to its matrix product.
        self.product = faiss.LinearTransform(gallery.shape[1], len(gallery), False)
        faiss.copy_array_to_vector(gallery.numpy().ravel(), self.product.A)
        self.product.is_trained = True

    def similarities(self, queries: Tensor) -> Tensor:
        pointer, into = self.faiss.swig_ptr(queries.numpy()), self.faiss.swig_ptr(self.block.numpy())
        self.product.apply_noalloc(len(queries), pointer, into)
        return self.block[: len(queries)]

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        if depth > HEAP_DEPTH:
            return super().largest(similarities, depth)
        values = np.empty((len(similarities), depth), np.float32)
        numbers = np.empty((len(similarities), depth), np.int64)
        heap = self.faiss.float_minheap_array_t()
        heap.nh, heap.k = values.shape
        heap.val, heap.ids = self.faiss.swig_ptr(values), self.faiss.swig_ptr(numbers)
        heap.heapify()
        heap.addn(similarities.shape[1], self.faiss.swig_ptr(similarities.numpy()))
        heap.reorder()
        return torch.from_numpy(values[:, ::-1].copy())


def _in_threads(function, parts: list) -> list:
    """Return [function(part) for part in parts], computed in parallel: numpy releases the interpreter lock."""
    if len(parts) < 2:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(function, parts))


def _engine(name: str | None, task: _Task) -> str:
    """Return the engine to use. Raise ValueError if the one that was asked for is unknown or cannot be used."""
    if name not in (None, "faiss", "torch"):
        raise ValueError(f"engine: {name!r}; choose faiss or torch")
    device, on_cpu = task.gallery.device, task.gallery.device.type == "cpu"
    installed = importlib.util.find_spec("faiss") is not None
    if name == "faiss" and not on_cpu:
        raise ValueError(f"engine: faiss searches on the CPU, the embeddings are on {device}; choose torch")
    if name == "faiss" and not installed:
        raise ValueError("engine: faiss is not installed (pip install faiss-cpu); choose torch")
    return name or ("faiss" if on_cpu and installed and not task.symmetric else "torch")


@contextmanager
def _search(engine: str, gallery: Tensor) -> Iterator[_TorchSearch]:
    if engine == "torch":
        yield _CpuSearch(gallery) if gallery.device.type == "cpu" else _TorchSearch(gallery)
        return
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield _FaissSearch(gallery, faiss)
    finally:
        faiss.omp_set_num_threads(threads)
