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
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.evaluation import metrics

TIE = 1e-6
BLOCK_BYTES = 256 * 2**20
MOST_QUERIES = 1024  # larger blocks multiply no faster
POSITIVE_BYTES = 64  # what a block takes for each positive: its index pair, similarity, rank, precision
HEAP_DEPTH = 64  # above it selection by partition is faster than faiss' heaps
LEAST_DEPTH = 16  # settles most best positives at almost no cost, so that few rows are counted whole


@dataclass(frozen=True, eq=False)
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
    queries = found = _normalized(embeddings, "embeddings")
    labels = stock = _checked_labels(labels, len(queries), "labels")
    if gallery is None:
        if gallery_labels is not None or gallery_ids is not None:
            raise ValueError("gallery_labels and gallery_ids belong to a gallery, and none is given")
        gallery_ids = query_ids = range(len(queries)) if query_ids is None else query_ids
    else:
        if gallery_labels is None:
            raise ValueError("a gallery needs gallery_labels")
        found = _normalized(gallery, "gallery").to(queries.device)
        stock = _checked_labels(gallery_labels, len(found), "gallery_labels")
        if found.shape[1] != queries.shape[1]:
            raise ValueError(f"gallery has {found.shape[1]} dimensions, embeddings have {queries.shape[1]}")
        if (query_ids is None) != (gallery_ids is None):
            raise ValueError("query_ids and gallery_ids go together: one of them is missing")
        if query_ids is None:
            if labels == stock and bool(((queries * found).sum(dim=1) > 1 - TIE).all()):
                raise ValueError(
                    "the gallery is the query array itself, so every query would find itself first: "
                    "leave gallery out, or give query_ids and gallery_ids"
                )
            query_ids, gallery_ids = [None] * len(queries), range(len(found))
    ids, gallery_ids = _numbered(
        _checked_ids(query_ids, len(queries), "query_ids"), _checked_ids(gallery_ids, len(found), "gallery_ids")
    )
    labels, stock = _numbered(labels, stock)
    classes = max(labels.max(), stock.max()) + 1
    same_label, same_id = _Members.of(labels, stock), _Members.of(ids, gallery_ids)
    itself = _Members.of(ids * classes + labels, gallery_ids * classes + stock)
    return _Task(queries, found, same_label, same_id, same_label.count - itself.count, len(found) - same_id.count)


def _numbered(first: Sequence, second: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Equal values get equal numbers from 0, in one sequence and across both. 1 and "1" are not equal."""
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
        raise ValueError(f"ks: {ks!r} is no list of K; write ks=({ks!r},)")
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
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True, dtype=torch.float64)
    return (scaled / lengths.to(scaled.dtype)).float().contiguous()


# --- ranks ----------------------------------------------------------------------------------------


def _ranks(
    search: _TorchSearch, task: _Task, kept: np.ndarray, wanted: tuple[metrics.Metric, ...], ks: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each block of queries: its rows in `kept` and the ranks (rows, m) of their positives.

    A block holds queries of like R, so that one large class does not deepen the search of all others.
    """
    remaining = np.argsort(task.relevant[kept], kind="stable")
    while len(remaining):
        most = int(task.relevant[kept[remaining[: search.rows][-1]]])
        rows, remaining = np.split(remaining, [min(search.rows, max(1, BLOCK_BYTES // (POSITIVE_BYTES * most)))])
        needs = {"best": 1, "relevant": most, "k": max(ks, default=1), "all": len(task.gallery)}
        depth = max(LEAST_DEPTH, *(needs[metric.depth] for metric in wanted))
        yield rows, _block_ranks(search, task, kept[rows], min(depth, len(task.gallery)))


def _block_ranks(search: _TorchSearch, task: _Task, queries: np.ndarray, depth: int) -> np.ndarray:
    """ranks (b, m) of the positives of `queries`: exact up to `depth`, the first column at any depth."""
    device = task.queries.device
    relevant = task.relevant[queries]
    similarities = search.similarities(task.queries[torch.from_numpy(queries).to(device)])

    row, column, _ = (torch.from_numpy(part).to(device) for part in task.same_id.pairs(queries))
    similarities[row, column] = -torch.inf
    row, column, place = (torch.from_numpy(part).to(device) for part in task.same_label.pairs(queries))
    positives = similarities.new_full((len(queries), int(task.same_label.count[queries].max())), -torch.inf)
    positives[row, place] = similarities[row, column]
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
    """Products and selection by torch, on the device of the gallery."""

    name = "torch"

    def __init__(self, gallery: Tensor):
        self.gallery = gallery
        self.rows = min(MOST_QUERIES, max(1, BLOCK_BYTES // (4 * len(gallery))))
        # One buffer for all blocks: fresh pages for each would cost as much as a tenth of the product.
        self.block = gallery.new_empty((self.rows, len(gallery)))

    def similarities(self, queries: Tensor) -> Tensor:
        """(b, g) of queries (b, d), b ≤ rows, in a buffer that the next call overwrites."""
        return torch.mm(queries, self.gallery.T, out=self.block[: len(queries)])

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        """(b, depth), ascending: the largest of each row. May reorder the rows of `similarities`."""
        return similarities.topk(depth, dim=1).values.flip(1)

    def at_least(self, similarities: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
        """(r,) how many similarities of each of these rows reach its threshold."""
        return (similarities[rows] >= thresholds[:, None]).sum(dim=1)


class _CpuSearch(_TorchSearch):
    """Selection and counting by numpy, on a CPU several times faster than torch's topk and comparisons."""

    def largest(self, similarities: Tensor, depth: int) -> Tensor:
        first = similarities.shape[1] - depth

        def select(rows: np.ndarray) -> np.ndarray:
            rows.partition(first, axis=1)
            return np.sort(rows[:, first:], axis=1)

        parts = np.array_split(similarities.numpy(), torch.get_num_threads())
        return torch.from_numpy(np.concatenate(_in_threads(select, parts)))

    def at_least(self, similarities: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
        block, rows, thresholds = similarities.numpy(), rows.numpy(), thresholds.numpy()

        def count(part: np.ndarray) -> list[int]:
            return [np.count_nonzero(block[rows[i]] >= thresholds[i]) for i in part]

        parts = np.array_split(np.arange(len(rows)), torch.get_num_threads())
        return torch.tensor(list(chain.from_iterable(_in_threads(count, parts))))


class _FaissSearch(_CpuSearch):
    """Products by faiss' BLAS and selection by its heaps, with as many threads as torch has."""

    name = "faiss"

    def __init__(self, gallery: Tensor, faiss):
        super().__init__(gallery)
        self.faiss = faiss
        # Faiss' map x → A x, with the gallery as A, is the one public way to its matrix product.
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
    """[function(part) for part in parts], at once: numpy lets go of the interpreter lock in its inner loops."""
    if len(parts) < 2:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(function, parts))


@contextmanager
def _engine(name: str | None, gallery: Tensor) -> Iterator[_TorchSearch]:
    if name not in (None, "faiss", "torch"):
        raise ValueError(f"engine: {name!r}; choose faiss or torch")
    on_cpu = gallery.device.type == "cpu"
    installed = importlib.util.find_spec("faiss") is not None
    if name == "faiss" and not on_cpu:
        raise ValueError(f"engine: faiss searches on the CPU, the embeddings are on {gallery.device}; choose torch")
    if name == "faiss" and not installed:
        raise ValueError("engine: faiss is not installed (pip install faiss-cpu); choose torch")
    if name == "torch" or not on_cpu or not installed:
        yield _CpuSearch(gallery) if on_cpu else _TorchSearch(gallery)
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


# --- conformance ----------------------------------------------------------------------------------


def conformance(evaluator: Callable[..., Evaluation] = evaluate) -> list[str]:
    """What an evaluator gets wrong on cases whose scores are known; an empty list means that it passes.

    A collapsed embedding scores at most chance, a perfect one 1, copies of a query in another class come before its
    positives, queries without a positive are left out, and vectors without a direction are refused.
    """
    problems = []
    for name, arguments, expected in _conformance_cases():
        try:
            found = evaluator(**arguments)
        except ValueError as error:
            if expected is not None:
                problems.append(f"{name}: refused ({error})")
            continue
        if expected is None:
            problems.append(f"{name} was not refused, scored R@1 = {found.values['R@1']:.3f}")
            continue
        scores = {**found.values, "excluded": found.excluded}
        problems += [
            f"{name} scored {title} = {scores[title]:.3f}, expected {low:.3f}"
            + (f" to {high:.3f}" if high > low else "")
            for title, (low, high) in expected.items()
            if not low - 1e-6 <= scores[title] <= high + 1e-6
        ]
    return problems


def _conformance_cases() -> Iterator[tuple[str, dict, dict[str, tuple[float, float]] | None]]:
    """(name, arguments, {title: (least, most)}), None in place of the scores where the evaluator has to refuse."""

    def exactly(**scores: float) -> dict[str, tuple[float, float]]:
        titles = {"r1": "R@1", "r2": "R@2", "r4": "R@4", "map": "MAP@R", "precision": "R-Precision"}
        return {titles.get(name, name): (score, score) for name, score in scores.items()}

    rng = np.random.default_rng(0)
    many = np.arange(1003) // 17
    one_place = np.tile(rng.standard_normal(512), (1003, 1))
    chance = {"R@1": (0.0, 16 / 1002), "R@8": (0.0, 8 * 16 / 1002), "MAP@R": (0.0, 16 / 1002)}
    yield "constant embedding", {"embeddings": one_place, "labels": many}, chance
    noisy = one_place + 1e-9 * rng.standard_normal(one_place.shape)
    yield "constant embedding with rounding noise", {"embeddings": noisy, "labels": many}, chance
    apart = np.eye(59)[many] + 1e-3 * rng.standard_normal((1003, 59))
    perfect = {"embeddings": apart, "labels": many}
    yield "perfect embedding", perfect, exactly(r1=1, r2=1, r4=1, map=1, precision=1)

    for name, value in (("NaN", math.nan), ("infinite", math.inf)):
        broken = apart.copy()
        broken[5, 7] = value
        yield f"embedding with a {name} value", {"embeddings": broken, "labels": many}, None
    yield "embedding with a zero vector", {"embeddings": apart * (many != 3)[:, None], "labels": many}, None
    yield "K beyond the candidates", perfect | {"ks": (1, 1003)}, None
    again = {"gallery": apart.copy(), "gallery_labels": many}
    yield "gallery that is the query array", perfect | again, None

    # On the circle the nearest is the nearest angle. Worked by hand: positives of the five queries stand at the ranks
    # 3 | 2, 4 | 1, 4 | 4 | 2, 3.
    points, labels = _at_degrees(0, 10, 25, 60, 100), ["a", "b", "b", "a", "b"]
    by_hand = exactly(r1=1 / 5, r2=3 / 5, r4=1, map=1 / 5, precision=3 / 10, excluded=0)
    circle = {"embeddings": points, "labels": labels, "ks": (1, 2, 4)}
    yield "hand-computed case", circle, by_hand
    stock = {"gallery": points[::-1], "gallery_labels": labels[::-1], "gallery_ids": range(5)[::-1]}
    yield "the same with the queries in the gallery", circle | stock | {"query_ids": range(5)}, by_hand

    twins = {"embeddings": _at_degrees(0, 0, 50, 50), "labels": ["a", "b", "a", "b"], "ks": (1, 2)}
    yield "copies in another class", twins, exactly(r1=0, r2=0, map=0, precision=0)
    twins = {"embeddings": _at_degrees(0, 0, 50, 50), "labels": ["a", "a", "b", "b"], "ks": (1, 2)}
    yield "copies in the own class", twins, exactly(r1=1, r2=1, map=1, precision=1)
    single = {"embeddings": _at_degrees(0, 5, 20, 60), "labels": ["a", "b", "b", "c"], "ks": (1, 2)}
    yield "classes of one image", single, exactly(r1=1 / 2, r2=1, map=1 / 2, excluded=2)


def _at_degrees(*angles: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
