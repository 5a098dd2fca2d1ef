"""FAIR-16 to 19: evaluators with the usual mistakes, and ours."""

from functools import partial

import numpy as np
import pytest

from harness.evaluation.conformance import conformance
from harness.evaluation.metrics.map_at_r import map_at_r
from harness.evaluation.metrics.r_precision import r_precision
from harness.evaluation.retrieval import Evaluation, evaluate
from harness.fairness import rules


def sloppy(
    embeddings,
    labels,
    ks=(1, 2, 4, 8),
    gallery=None,
    gallery_labels=None,
    query_ids=None,
    gallery_ids=None,
    depth=10**6,
):
    """An evaluator in the style of many: sort by distance, drop the first, look at `depth` neighbours."""
    stock = np.asarray(embeddings if gallery is None else gallery, float)
    stock_labels = np.asarray(labels if gallery is None else gallery_labels)
    order = np.argsort(-np.asarray(embeddings, float) @ stock.T, axis=1, kind="stable")
    own = gallery is None or query_ids is not None
    order = order[:, own : own + depth]
    right = stock_labels[order] == np.asarray(labels)[:, None]
    relevant = np.array([(stock_labels == label).sum() for label in labels]) - own
    ranks = np.where(right, np.arange(1, right.shape[1] + 1), np.iinfo(np.int64).max)
    ranks = np.sort(ranks, axis=1)
    per_query = {f"R@{k}": ranks[:, 0] <= k for k in ks}
    per_query |= {"MAP@R": map_at_r(ranks, relevant), "R-Precision": r_precision(ranks, relevant)}
    values = {name: float(scores.mean()) for name, scores in per_query.items()}
    return Evaluation(values, per_query, ranks[:, 0], np.arange(len(labels)), 0, "sloppy")


def found(evaluator):
    return {f.rule: f for f in reversed(rules.over_evaluator(evaluator, lambda evaluator: []))}


def test_ours_passes():
    assert rules.over_evaluator(evaluate, conformance) == ()


def test_a_mistake_on_a_known_case_is_an_error():
    (finding,) = rules.over_evaluator(evaluate, lambda _: ["constant embedding scored R@1 = 1.000, expected 0.016"])
    assert (finding.rule, finding.severity) == ("FAIR-16", "E")
    assert finding.sentence == "FAIR-16 constant embedding scored R@1 = 1.000, expected 0.016."


def test_dropping_the_first_rank_is_caught():
    finding = found(sloppy)["FAIR-17"]
    assert finding.severity == "E"
    assert finding.sentence == (
        "FAIR-17 copies of another class, searched among themselves, scored R@1 = 0.500, expected 0."
    )


def test_a_shallow_search_is_caught():
    assert "FAIR-18" not in found(sloppy)
    finding = found(partial(sloppy, depth=2048))["FAIR-18"]
    assert finding.severity == "E"
    assert "of a class of 2100 images scored" in finding.sentence


def test_queries_without_a_positive_are_counted(make_clean, finds):
    records = [make_clean(seed=seed, data={"test_excluded": 3, "test_asked": 11}) for seed in (0, 1)]
    assert finds(19, records) == [
        ("W", "FAIR-19 glyphs: 3 of 11 test queries have no positive and are excluded."),
    ]


@pytest.mark.parametrize("asked", [None, 8])
def test_all_queries_have_one(asked, make_clean, finds):
    assert finds(19, [make_clean(data={"test_asked": asked})]) == []


def test_queries_that_are_lost(make_clean, finds):
    record = make_clean(data={"test_asked": 10})
    assert finds(19, [record]) == [
        ("W", f"FAIR-19 {record.id}: 8 scored and 0 excluded of 10 queries, 2 unaccounted for."),
    ]
    records = [make_clean(seed=seed, data={"test_queries": 8 - (seed == 2), "test_asked": None}) for seed in range(3)]
    assert finds(19, records) == [
        ("W", "FAIR-19 glyphs/test_resnet: rows of one table were scored on 7 (1 record), 8 (2 records) queries."),
    ]
