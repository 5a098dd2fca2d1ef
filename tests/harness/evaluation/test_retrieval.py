"""Retrieval against a plain double loop in float64, for every engine; then ties, roles, edge cases and bad input."""

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from harness.evaluation import retrieval, symmetry
from harness.evaluation.conformance import conformance
from harness.evaluation.retrieval import evaluate

KS = (1, 2, 5)
TITLES = ["R@1", "R@2", "R@5", "MAP@R", "R-Precision"]


@pytest.fixture(params=["faiss", "torch", "torch without symmetry", "torch on its own"])
def engine(request, monkeypatch):
    """Faiss; torch by symmetry; torch with numpy's selection; and torch alone, which is what runs on a GPU."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    if request.param in ("torch without symmetry", "torch on its own"):
        monkeypatch.setattr(symmetry, "LARGEST_CLASS", 0)
    if request.param == "torch on its own":
        monkeypatch.setattr(retrieval, "_CpuSearch", retrieval._TorchSearch)
    return request.param.split()[0]


def by_loops(embeddings, labels, gallery, gallery_labels, itself):
    """{query: [R@1, R@2, R@5, MAP@R, R-Precision]} of the queries that have a positive; itself(i, j): leave j out."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    stock = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    found = {}
    for i, query in enumerate(unit):
        others = [j for j in range(len(stock)) if not itself(i, j)]
        positives = sorted((query @ stock[j] for j in others if gallery_labels[j] == labels[i]), reverse=True)
        negatives = [query @ stock[j] for j in others if gallery_labels[j] != labels[i]]
        if not positives:
            continue
        count = len(positives)
        ranks = [j + sum(s >= p - 1e-6 for s in negatives) for j, p in enumerate(positives, 1)]
        precisions = [j / rank if rank <= count else 0 for j, rank in enumerate(ranks, 1)]
        hits = [rank <= count for rank in ranks]
        found[i] = [*(ranks[0] <= k for k in KS), sum(precisions) / count, sum(hits) / count]
    return found


def check(found, expected):
    assert found.queries.tolist() == list(expected)
    table = np.array(list(expected.values()), float)
    for title, column in zip(TITLES, table.T, strict=True):
        np.testing.assert_allclose(found.per_query[title], column, atol=1e-6, err_msg=title)
        assert found.values[title] == pytest.approx(column.mean(), abs=1e-6)


def some_embeddings(seed, n, classes, dim=8, spread=1.5):
    """Blobs, a tenth of them copies of another row and so exact ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    embeddings = rng.standard_normal((classes, dim))[labels] + spread * rng.standard_normal((n, dim))
    embeddings[rng.integers(0, n, n // 10)] = embeddings[rng.integers(0, n, n // 10)]
    return embeddings, labels


@pytest.mark.parametrize(("n", "classes"), [(60, 8), (90, 70), (180, 2)], ids=["few", "singletons", "deep"])
@pytest.mark.parametrize("rows", [1024, 7], ids=["one block", "many blocks"])
def test_equals_the_double_loop(engine, monkeypatch, n, classes, rows):
    monkeypatch.setattr(retrieval, "MAX_QUERIES", rows)
    monkeypatch.setattr(symmetry, "BLOCK", rows)
    embeddings, labels = some_embeddings(n, n, classes)
    found = evaluate(embeddings, labels, KS, engine=engine)
    expected = by_loops(embeddings, labels, embeddings, labels, lambda i, j: i == j)
    check(found, expected)
    assert found.excluded == n - len(expected)
    assert found.engine == engine


@pytest.mark.parametrize("rows", [1, 5, 16, 300], ids=lambda rows: f"blocks of {rows}")
@pytest.mark.parametrize("threads", [1, 3])
def test_symmetry_gives_the_same_bits_as_whole_rows(monkeypatch, rows, threads):
    """With classes of one image, copies of an image in other blocks, and ranks at every depth of a metric."""
    embeddings, labels = some_embeddings(rows, 400, 120, dim=4)
    labels[:30] = 1000 + np.arange(30)
    embeddings[::40] = embeddings[0]
    monkeypatch.setattr(symmetry, "LARGEST_CLASS", 0)
    expected = evaluate(embeddings, labels, KS, engine="torch")
    monkeypatch.setattr(symmetry, "LARGEST_CLASS", 512)
    monkeypatch.setattr(symmetry, "BLOCK", rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = evaluate(embeddings, labels, KS)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found.values == expected.values
    assert found.best_ranks.tolist() == expected.best_ranks.tolist()
    assert found.queries.tolist() == expected.queries.tolist()
    for title, scores in expected.per_query.items():
        np.testing.assert_array_equal(found.per_query[title], scores)


def test_queries_against_a_gallery(engine):
    embeddings, labels = some_embeddings(0, 80, 12)
    gallery, stock = some_embeddings(1, 50, 12)
    found = evaluate(embeddings, labels, KS, gallery, stock, engine=engine)
    check(found, by_loops(embeddings, labels, gallery, stock, lambda i, j: False))


def test_equal_ids_are_left_out_in_any_position(engine):
    embeddings, labels = some_embeddings(2, 80, 12)
    order = np.random.default_rng(3).permutation(80)[:60]
    ids = [f"image {i % 70}" for i in range(80)]  # ten images stand in the gallery twice
    found = evaluate(
        embeddings, labels, KS, embeddings[order], labels[order], ids, [ids[j] for j in order], engine=engine
    )
    expected = by_loops(embeddings, labels, embeddings[order], labels[order], lambda i, j: ids[i] == ids[order[j]])
    check(found, expected)
    copies = evaluate(embeddings, labels, KS, query_ids=ids, engine=engine)
    check(copies, by_loops(embeddings, labels, embeddings, labels, lambda i, j: ids[i] == ids[j]))


def test_one_large_class_deepens_only_its_own_block(engine, monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_QUERIES", 32)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 64 * 100 * 4)  # four rows of a hundred positives
    embeddings, labels = some_embeddings(4, 200, 20)
    labels[:100] = 99
    check(
        evaluate(embeddings, labels, KS, engine=engine),
        by_loops(embeddings, labels, embeddings, labels, lambda i, j: i == j),
    )


def test_a_tie_group_larger_than_the_search_depth(engine):
    # 40 copies of the query in other classes, its positive among them; then a positive that no tie touches
    embeddings = np.concatenate([np.tile([1.0, 0.0], (42, 1)), [[0.0, 1.0], [0.1, 1.0]]])
    labels = np.array([7, 7, *range(100, 140), 8, 8])
    found = evaluate(embeddings, labels, (1, 40, 41), engine=engine)
    assert found.queries.tolist() == [0, 1, 42, 43]
    assert found.best_ranks.tolist() == [41, 41, 1, 1]
    assert found.values["R@40"] == 0.5
    assert found.values["R@41"] == 1


@pytest.mark.parametrize("dim", [3, 512, 2048])
def test_a_constant_embedding_scores_nothing(engine, dim):
    """Products of equal rows differ in their last bits: 1,003 of them meet more than one kernel of the product."""
    place = np.abs(np.random.default_rng(dim).standard_normal(dim))
    found = evaluate(np.tile(place, (1003, 1)), np.arange(1003) // 10, (1, 900), engine=engine)
    assert found.values == {"R@1": 0, "R@900": 0, "MAP@R": 0, "R-Precision": 0}
    assert set(found.best_ranks) == {994, 1001}  # all 993 of other classes; for the last class, of three, all 1,000


def test_similarities_within_a_millionth_tie():
    def first(gap):  # the positive is nearer than the other class by `gap` in similarity
        angles = np.arccos([1.0, 0.5, 0.5 - gap])
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return evaluate(points[:1], [0], (1,), points[1:], [0, 1]).values["R@1"]

    assert first(5e-7) == 0
    assert first(2e-6) == 1


def test_engines_agree_on_every_query():
    pytest.importorskip("faiss")
    embeddings, labels = some_embeddings(5, 700, 90, dim=64, spread=2.5)
    one, other = (evaluate(embeddings, labels, (1, 10, 600), engine=name) for name in ("faiss", "torch"))
    for title in one.per_query:
        np.testing.assert_array_equal(one.per_query[title], other.per_query[title])
    np.testing.assert_array_equal(one.best_ranks, other.best_ranks)


def test_best_ranks_give_recall_at_any_k():
    embeddings, labels = some_embeddings(6, 200, 30)
    found = evaluate(embeddings, labels, (1, 3, 100))
    for k in (1, 3, 100):
        assert found.values[f"R@{k}"] == pytest.approx((found.best_ranks <= k).mean())


def test_kinds_of_numbers():
    embeddings, labels = some_embeddings(7, 50, 8)
    found = evaluate(embeddings, labels)
    assert found.per_query["R@1"].dtype == bool
    assert found.per_query["MAP@R"].dtype == np.float32
    assert found.queries.dtype == found.best_ranks.dtype == np.int64
    assert all(type(value) is float for value in found.values.values())
    assert list(found.values) == ["R@1", "R@2", "R@4", "R@8", "MAP@R", "R-Precision"]


def test_accepted_kinds_of_embeddings():
    coarse = np.random.default_rng(8).integers(-8, 9, (60, 16)).astype(np.float32)  # exact in 16 bits
    labels = np.arange(60) // 4
    expected = evaluate(coarse, labels).values
    read_only = coarse.copy()
    read_only.flags.writeable = False
    tensor = torch.from_numpy(coarse)
    for same in (
        coarse.astype(np.float16),
        coarse.astype(np.float64),
        np.asfortranarray(coarse),
        coarse[::-1][::-1],
        coarse.tolist(),
        read_only,
        tensor.bfloat16(),
        tensor.half(),
        tensor.T.contiguous().T,
        tensor.double().requires_grad_(),
        coarse * np.float32(1e-38),
        coarse * np.float32(1e37),
        coarse.astype(np.float64) * 1e300,
        coarse * np.random.default_rng(9).uniform(0.1, 10, (60, 1)),
    ):
        assert evaluate(same, labels).values == expected
    names = [f"class {label}" for label in labels]
    for same in (labels.tolist(), torch.from_numpy(labels), names, np.array(names, object), labels.astype(np.uint8)):
        assert evaluate(coarse, same).values == expected


def test_threads_and_precision_of_the_caller_do_not_matter_and_are_restored(monkeypatch):
    embeddings, labels = some_embeddings(10, 300, 2, dim=64)
    expected = evaluate(embeddings, labels, engine="torch")
    matmul: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue] (set at import)
    seen = []
    real = torch.mm

    def watched(*arguments, **options):
        seen.append(matmul.fp32_precision)
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "mm", watched)
    threads, precision = torch.get_num_threads(), matmul.fp32_precision
    torch.set_num_threads(3)
    matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = evaluate(embeddings, labels, engine="torch")
        assert matmul.fp32_precision == "bf16"
    finally:
        torch.set_num_threads(threads)
        matmul.fp32_precision = precision
    assert found.values == expected.values
    assert seen == ["ieee"]


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    embeddings, labels = some_embeddings(11, 50, 8)
    assert evaluate(embeddings, labels).engine == "torch"
    with pytest.raises(ValueError, match="faiss is not installed"):
        evaluate(embeddings, labels, engine="faiss")


def broken(row, value):
    embeddings = np.ones((9, 4), np.float32)
    embeddings[row] = value
    return embeddings


NINE = [0, 0, 0, 1, 1, 1, 2, 2, 2]
GOOD = np.random.default_rng(12).standard_normal((9, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((broken([4, 7], 0), NINE), "embeddings: 2 of 9 vectors zero, the first at index 4"),
        ((broken(3, np.nan), NINE), "embeddings: 1 of 9 vectors not finite, the first at index 3"),
        ((broken(5, -np.inf), NINE), "not finite, the first at index 5"),
        ((GOOD, NINE, (1,), broken(8, np.nan), NINE), "gallery: 1 of 9 vectors not finite, the first at index 8"),
        ((GOOD, NINE, (1, 9)), r"R@9 needs 9 candidates, a query has only 8"),
        ((GOOD, NINE, (0,)), "ks: 0 is not a whole number from 1"),
        ((GOOD, NINE, (1.5,)), "ks: 1.5 is not"),
        ((GOOD, NINE, 4), r"write ks=\(4,\)"),
        ((GOOD, range(9)), "none of the 9 queries has a positive"),
        ((GOOD, NINE[:8]), r"labels has shape \(8,\) for 9 vectors"),
        ((GOOD, [0.5] * 9), "labels are float64; expected integers or strings"),
        ((GOOD[0], NINE), r"embeddings has shape \(4,\)"),
        ((GOOD[:0], []), r"embeddings has shape \(0, 4\)"),
        ((GOOD.astype(int), NINE), "expected floating point"),
        ((GOOD, NINE, (1,), GOOD, NINE), "the gallery is the query array itself"),
        ((GOOD, NINE, (1,), GOOD.astype(np.float16), NINE), "the gallery is the query array itself"),
        ((GOOD, NINE, (1,), GOOD[:5]), "a gallery needs gallery_labels"),
        ((GOOD, NINE, (1,), None, NINE), "need a gallery, and none is given"),
        ((GOOD, NINE, (1,), GOOD[:5, :3], NINE[:5]), "gallery has 3 dimensions, embeddings have 4"),
        ((GOOD, NINE, (1,), GOOD[:5], NINE[:5], range(9)), "go together"),
        ((GOOD, NINE, (1,), GOOD[:5], NINE[:5], range(8), range(5)), "query_ids has 8 entries for 9 vectors"),
        ((GOOD, NINE, (1,), GOOD[:5], [str(i) for i in NINE[:5]]), "none of the 9 queries has a positive"),
    ],
)
def test_bad_input_is_rejected_with_a_reason(arguments, words):
    with pytest.raises(ValueError, match=words):
        evaluate(*arguments)


def test_every_engine_conforms(engine):
    assert conformance(partial(evaluate, engine=engine)) == []


def test_an_unknown_engine():
    with pytest.raises(ValueError, match="engine: 'cuda'; choose faiss or torch"):
        evaluate(GOOD, NINE, engine="cuda")
