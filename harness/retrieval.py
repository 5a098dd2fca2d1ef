"""Exact retrieval: the scores of an embedding, with faiss on a CPU and torch on a GPU or where faiss is missing.

Every query is compared with every candidate. The similarities of a block of queries to the whole gallery are one
matrix product, and values are compared with each other inside that product only: a dot product computed apart
differs in its last bits. Then, for each query,

    1. its own entries (same index, or equal id) leave the row: no rank is ever skipped to get rid of them;
    2. its R positives are taken out of the row, best first: p_1 ≥ p_2 ≥ … ≥ p_R;
    3. the `depth` largest of what remains, all of other classes, are found;
    4. rank of the j-th positive = j + the number of other-class candidates whose similarity is ≥ p_j − 1e-6.

So other classes come first among ties, and a constant embedding scores 0 instead of chance or 100 %. As the
positives leave the row before the search, no tie group can hide anything at the search depth: where fewer than
`depth` are found the count is complete, and where all `depth` are found the rank lies beyond `depth`, which is all
that MAP@R (depth ≥ R) has to know. Only the best positive's rank is wanted at any depth, for R@K: where the search
did not settle it, the whole row is counted. R@1000 therefore costs what R@1 costs.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import metrics

TIE = 1e-6
BLOCK_BYTES = 256 * 2**20
HEAP_DEPTH = 64  # above it selection by partition is faster than faiss' heaps
LEAST_DEPTH = 16  # settles most best positives at almost no cost, so that few rows are counted whole


@dataclass(frozen=True)
class Evaluation:
    """Scores of one embedding.

    values      {"R@1": 0.637, …, "MAP@R": …, "R-Precision": …}, each in [0, 1]: means of `per_query`
    per_query   {"R@1": bool (q,), …, "MAP@R": float32 (q,)}, in the order of `queries`
    best_ranks  (q,) int64 ≥ 1: the rank of each query's best positive; R@K for any K is mean(best_ranks <= K)
    queries     (q,) int64: the rows of `embeddings` that have at least one positive
    excluded    how many queries have none and are therefore in no mean
    engine      "faiss" or "torch", which computed it
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
    """R@K, MAP@R, R-Precision and every other metric in `harness/metrics`, by exact cosine similarity.

    embeddings      (n, d) float16, bfloat16, 32 or 64, numpy or torch; l2-normalised here. A CUDA tensor is scored
                    on its device, everything else on the CPU
    labels          (n,) integers or strings; the candidates with the query's label are its positives
    ks              the K of R@K, each from 1 to the number of candidates
    gallery         (g, d): search here instead of among `embeddings` (In-Shop's protocol), with gallery_labels (g,)
    query_ids       (n,), and gallery_ids (g,): a candidate whose id equals the query's is the query itself and is
                    left out. Without a gallery the query's own row is always left out, further copies by query_ids
    engine          "faiss" or "torch"; by default faiss on a CPU where it is installed, else torch

    Raises ValueError for zero or non-finite vectors, K beyond the candidates, a gallery that is the query array again
    and has no ids, sizes that do not match, and where no query has a positive.
    """
    ks = _checked_ks(ks)
    task = _task(embeddings, labels, gallery, gallery_labels, query_ids, gallery_ids)
    kept = np.flatnonzero(task.relevant)
    if not len(kept):
        raise ValueError(f"labels: none of the {len(task.relevant)} queries has a positive among its candidates")
    candidates = int(task.candidates[kept].min())
    if ks and ks[-1] > candidates:
        raise ValueError(f"ks: R@{ks[-1]} needs {ks[-1]} candidates, a query has only {candidates}")

    wanted = metrics.found()
    columns = {title: (metric, given) for metric in wanted for title, given in metric.columns(ks).items()}
    per_query = {}
    best = np.empty(len(kept), np.int64)
    with _exact_products(), _engine(engine, task.gallery) as search:
        for rows, ranks in _ranks(search, task, kept, wanted, ks):
            best[rows] = ranks[:, 0]
            for title, (metric, given) in columns.items():
                scores = metric.compute(ranks, task.relevant[kept[rows]], **given)
                kind = np.bool_ if scores.dtype == np.bool_ else np.float32
                per_query.setdefault(title, np.empty(len(kept), kind))[rows] = scores
        used = search.name
    values = {title: float(scores.mean(dtype=np.float64)) for title, scores in per_query.items()}
    return Evaluation(values, per_query, best, kept, len(task.relevant) - len(kept), used)


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Members:
    """The gallery rows of every group (class, or id), so that those of a query's group are found without a search."""

    order: np.ndarray
    first: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, gallery: np.ndarray) -> _Members:
        """queries (n,), gallery (g,): group numbers; a query's number may occur nowhere in the gallery."""
        order = np.argsort(gallery, kind="stable")
        first = np.searchsorted(gallery, queries, "left", sorter=order)
        return cls(order, first, np.searchsorted(gallery, queries, "right", sorter=order) - first)

    def pairs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row in `queries`, gallery row, place within its group), one entry per member of each query's group."""
        count = self.count[queries]
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return (
            np.repeat(np.arange(len(queries)), count),
            self.order[np.repeat(self.first[queries], count) + place],
            place,
        )


@dataclass(frozen=True)
class _Task:
    """Who searches, where, and which candidates are the query itself or its positives."""

    queries: Tensor
    gallery: Tensor
    same_label: _Members
    same_id: _Members
    relevant: np.ndarray
    candidates: np.ndarray


def _task(embeddings, labels, gallery, gallery_labels, query_ids, gallery_ids) -> _Task:
    queries = _normalized(embeddings, "embeddings")
    n = len(queries)
    labels = _checked_labels(labels, n, "labels")
    if gallery is None:
        if gallery_labels is not None or gallery_ids is not None:
            raise ValueError("gallery_labels and gallery_ids belong to a gallery, and none is given")
        found, gallery_labels = queries, labels
        ids = _codes(range(n) if query_ids is None else _listed(query_ids, n, "query_ids"))
        gallery_ids = ids
    else:
        if gallery_labels is None:
            raise ValueError("a gallery needs gallery_labels")
        found = _normalized(gallery, "gallery").to(queries.device)
        gallery_labels = _checked_labels(gallery_labels, len(found), "gallery_labels")
        if found.shape[1] != queries.shape[1]:
            raise ValueError(f"gallery has {found.shape[1]} dimensions, embeddings have {queries.shape[1]}")
        if (query_ids is None) != (gallery_ids is None):
            raise ValueError("query_ids and gallery_ids go together: one of them is missing")
        if query_ids is None:
            if torch.equal(queries, found):
                raise ValueError(
                    "the gallery is the query array itself, so every query would find itself first: "
                    "leave gallery out, or give query_ids and gallery_ids"
                )
            ids, gallery_ids = np.zeros(n, np.int64), np.ones(len(found), np.int64)
        else:
            both = _codes([*_listed(query_ids, n, "query_ids"), *_listed(gallery_ids, len(found), "gallery_ids")])
            ids, gallery_ids = both[:n], both[n:]
    both = _codes([*labels.tolist(), *gallery_labels.tolist()])
    labels, gallery_labels = both[:n], both[n:]
    same_label, same_id = _Members.of(labels, gallery_labels), _Members.of(ids, gallery_ids)
    numbers = both.max() + 1
    id_and_label = _Members.of(ids * numbers + labels, gallery_ids * numbers + gallery_labels)
    return _Task(
        queries, found, same_label, same_id, same_label.count - id_and_label.count, len(found) - same_id.count
    )


def _codes(values) -> np.ndarray:
    """Equal values get equal numbers."""
    seen: dict[Hashable, int] = {}
    return np.fromiter((seen.setdefault(value, len(seen)) for value in values), np.int64)


def _listed(ids, n: int, name: str) -> list:
    listed = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else list(ids)
    if len(listed) != n:
        raise ValueError(f"{name} has {len(listed)} entries for {n} vectors")
    return listed


def _checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    wrong = [k for k in ks if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1]
    if wrong:
        raise ValueError(f"ks: {wrong[0]!r} is not a whole number from 1")
    return tuple(sorted({int(k) for k in ks}))


def _checked_labels(labels, n: int, name: str) -> np.ndarray:
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} has shape {labels.shape} for {n} vectors; expected ({n},)")
    if labels.dtype.kind not in "biuUSO":
        raise ValueError(f"{name} are {labels.dtype}; expected integers or strings")
    return labels


def _normalized(embeddings, name: str) -> Tensor:
    """(n, d) float32 of length 1, on the device of `embeddings`; no scale of the input over- or underflows."""
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
    return (
        scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True, dtype=torch.float64).to(scaled.dtype)
    ).float()


# --- ranks ----------------------------------------------------------------------------------------


def _ranks(
    search: _Search, task: _Task, kept: np.ndarray, wanted: tuple[metrics.Metric, ...], ks: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each block of queries: its rows in `kept` and the ranks (rows, m) of their positives.

    A block holds queries of like R, so that one large class does not deepen the search of all others.
    """
    size = max(1, BLOCK_BYTES // (4 * len(task.gallery)))
    by_relevant = np.argsort(task.relevant[kept], kind="stable")
    for begin in range(0, len(kept), size):
        rows = by_relevant[begin : begin + size]
        most = int(task.relevant[kept[rows]].max())
        needs = {"best": 1, "relevant": most, "k": max(ks, default=1), "all": len(task.gallery)}
        depth = max(LEAST_DEPTH, *(needs[metric.depth] for metric in wanted))
        yield rows, _block_ranks(search, task, kept[rows], min(depth, len(task.gallery)))


def _block_ranks(search: _Search, task: _Task, queries: np.ndarray, depth: int) -> np.ndarray:
    """ranks (b, m) of the positives of `queries`: exact up to `depth`, the first column at any depth."""
    device = task.queries.device
    relevant = torch.from_numpy(task.relevant[queries]).to(device)
    similarities = search.similarities(task.queries[torch.from_numpy(queries).to(device)])

    row, column, _ = (torch.from_numpy(part).to(device) for part in task.same_id.pairs(queries))
    similarities[row, column] = -torch.inf
    row, column, place = (torch.from_numpy(part).to(device) for part in task.same_label.pairs(queries))
    positives = similarities.new_full((len(queries), int(task.same_label.count[queries].max())), -torch.inf)
    positives[row, place] = similarities[row, column]
    similarities[row, column] = -torch.inf
    positives = positives.sort(dim=1, descending=True).values[:, : int(relevant.max())]

    thresholds = positives - TIE
    others = search.largest(similarities, depth)
    before = depth - torch.searchsorted(others, thresholds)
    ranks = before + torch.arange(1, before.shape[1] + 1, device=device)
    ranks[before == depth] = metrics.BEYOND
    ranks[torch.arange(before.shape[1], device=device) >= relevant[:, None]] = metrics.BEYOND
    unsettled = (before[:, 0] == depth).nonzero().flatten()
    if len(unsettled):
        ranks[unsettled, 0] = 1 + search.at_least(similarities, unsettled, thresholds[unsettled, 0])
    return ranks.cpu().numpy()


# --- engines --------------------------------------------------------------------------------------


class _Search:
    """Torch: products on the device of the gallery, selection there too, or by numpy where that is the CPU."""

    name = "torch"

    def __init__(self, gallery: Tensor):
        self.gallery = gallery

    def similarities(self, queries: Tensor) -> Tensor:
        """(b, g) of queries (b, d)."""
        return queries @ self.gallery.T

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        """(b, depth), ascending: the largest of each row. May reorder the rows."""
        if similarities.is_cuda:
            return similarities.topk(depth, dim=1).values.flip(1)

        def select(rows: np.ndarray) -> np.ndarray:
            rows.partition(rows.shape[1] - depth, axis=1)
            return np.sort(rows[:, rows.shape[1] - depth :], axis=1)

        rows = similarities.numpy()
        return torch.from_numpy(np.concatenate(_in_threads(select, np.array_split(rows, torch.get_num_threads()))))

    def at_least(self, similarities: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
        """(r,) how many similarities of each of these rows reach its threshold."""
        if similarities.is_cuda:
            return (similarities[rows] >= thresholds[:, None]).sum(dim=1)
        block, given = similarities.numpy(), list(zip(rows.tolist(), thresholds.numpy(), strict=True))

        def count(part: slice) -> list[int]:
            return [np.count_nonzero(block[row] >= threshold) for row, threshold in given[part]]

        share = -(-len(given) // torch.get_num_threads())
        parts = [slice(begin, begin + share) for begin in range(0, len(given), share)]
        return torch.tensor([found for part in _in_threads(count, parts) for found in part])


class _FaissSearch(_Search):
    """Faiss on the CPU: its BLAS for the product, its heaps for the selection, with as many threads as torch has."""

    name = "faiss"

    def __init__(self, gallery: Tensor, faiss):
        self.faiss, self.size = faiss, len(gallery)
        # Faiss' map x → A x, with the gallery as A, is the one public way to its matrix product.
        self.product = faiss.LinearTransform(gallery.shape[1], self.size, False)
        faiss.copy_array_to_vector(gallery.numpy().ravel(), self.product.A)
        self.product.is_trained = True

    def similarities(self, queries: Tensor) -> Tensor:
        queries = np.ascontiguousarray(queries.numpy())
        block = np.empty((len(queries), self.size), np.float32)
        self.product.apply_noalloc(len(queries), self.faiss.swig_ptr(queries), self.faiss.swig_ptr(block))
        return torch.from_numpy(block)

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        if depth > HEAP_DEPTH:
            return super().largest(similarities, depth)
        values = np.empty((len(similarities), depth), np.float32)
        numbers = np.empty((len(similarities), depth), np.int64)
        heap = self.faiss.float_minheap_array_t()
        heap.nh, heap.k = values.shape
        heap.val, heap.ids = self.faiss.swig_ptr(values), self.faiss.swig_ptr(numbers)
        heap.heapify()
        heap.addn(self.size, self.faiss.swig_ptr(similarities.numpy()))
        heap.reorder()
        return torch.from_numpy(values[:, ::-1].copy())


def _in_threads(function, parts: list) -> list:
    """[function(part) for part in parts], at once: numpy lets go of the interpreter lock in its inner loops."""
    if len(parts) < 2:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(function, parts))


@contextmanager
def _engine(name: str | None, gallery: Tensor) -> Iterator[_Search]:
    if name not in (None, "faiss", "torch"):
        raise ValueError(f"engine: {name!r}; choose faiss or torch")
    if name == "faiss" and gallery.is_cuda:
        raise ValueError(
            "engine: faiss searches on the CPU and the embeddings are on a GPU; move them, or choose torch"
        )
    there = importlib.util.find_spec("faiss") is not None
    if name == "faiss" and not there:
        raise ValueError("engine: faiss is not installed (pip install faiss-cpu); choose torch")
    if name == "torch" or gallery.is_cuda or not there:
        yield _Search(gallery)
        return
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield _FaissSearch(gallery, faiss)
    finally:
        faiss.omp_set_num_threads(threads)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Full float32 products: a training loop's TF32 or bfloat16 would blur similarities by 1e-3."""
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        with torch.inference_mode(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def evaluator_digest() -> str:
    """sha256 over the source of this file and of every metric: equal digests mean scores of the same code."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (here / "retrieval.py", *sorted((here / "metrics").glob("*.py"))):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
