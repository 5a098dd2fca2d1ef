"""The contract of every metric file, and that a new file is enough to add a metric."""

import doctest
import importlib
import math
import sys

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.evaluation.metrics import BEYOND
from harness.evaluation.metrics.map_at_r import map_at_r
from harness.evaluation.metrics.r_precision import r_precision
from harness.evaluation.metrics.recall_at_k import recall_at_k
from harness.evaluation.retrieval import evaluate


@pytest.fixture(params=metrics.load_all(), ids=lambda metric: metric.name)
def metric(request):
    return request.param


def given(metric):
    return {"k": 2} if metric.takes_k else {}


def test_its_docstring_example_runs_and_exists(metric):
    module = importlib.import_module(f"harness.evaluation.metrics.{metric.name}")
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0
    assert result.failed == 0
    assert metric.summary


def test_one_number_per_query_between_none_and_all_right(metric):
    relevant = np.array([1, 3, 3])
    perfect = np.array([[1, BEYOND, BEYOND], [1, 2, 3], [1, 2, 3]])
    assert metric.compute(perfect, relevant, **given(metric)).tolist() == [1, 1, 1]
    hopeless = np.full((3, 3), BEYOND)
    assert metric.compute(hopeless, relevant, **given(metric)).tolist() == [0, 0, 0]


def test_a_positive_further_down_is_never_better(metric):
    rng = np.random.default_rng(0)
    ranks = np.sort(rng.permuted(np.tile(np.arange(1, 13), (200, 1)), axis=1)[:, :4])
    worse = ranks.copy()
    worse[:, -1] += 1
    relevant = np.full(200, 4)
    assert (
        metric.compute(worse, relevant, **given(metric)) <= metric.compute(ranks, relevant, **given(metric))
    ).all()


def test_by_hand():
    ranks, relevant = np.array([[2, 3, 9, BEYOND], [1, 2, 3, 5]]), np.array([3, 4])
    assert recall_at_k(ranks, relevant, 1).tolist() == [False, True]
    assert recall_at_k(ranks, relevant, 2).tolist() == [True, True]
    assert r_precision(ranks, relevant).tolist() == [2 / 3, 3 / 4]
    assert map_at_r(ranks, relevant).tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3, 3 / 4])


NEW = '''
"""Reciprocal rank."""
TITLE = "{title}"
DEPTH = "{depth}"

def reciprocal_rank(ranks, relevant{more}):
    """One over the rank of the best positive."""
    return 1 / ranks[:, 0]
'''


@pytest.fixture
def add(tmp_path, monkeypatch):
    def write(title="MRR", depth="best", more="", name="reciprocal_rank"):
        (tmp_path / f"{name}.py").write_text(NEW.format(title=title, depth=depth, more=more))
        monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"harness.evaluation.metrics.{name}", raising=False)

    return write


def test_a_new_file_is_a_new_column(add):
    add()
    angles = np.radians([0, 10, 25, 60, 100])  # nearest first: of 0°: 10°, 25°, 60°, 100°
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = evaluate(points, ["a", "b", "b", "a", "b"], ks=(1,))
    assert set(found.values) == {"R@1", "MAP@R", "R-Precision", "MRR"}
    assert found.per_query["MRR"].tolist() == pytest.approx([1 / 3, 1 / 2, 1, 1 / 4, 1 / 2])
    assert found.values["MRR"] == pytest.approx(math.fsum([1 / 3, 1 / 2, 1, 1 / 4, 1 / 2]) / 5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depth": "far"}, "DEPTH = 'far'; choose one of best, relevant, k, all"),
        ({"title": "MRR@{{k}}"}, "if and only if reciprocal_rank takes k"),
        ({"more": ", k"}, "if and only if reciprocal_rank takes k"),
        ({"name": "other"}, "needs a function named 'other'"),
    ],
)
def test_a_file_that_defines_no_metric_is_named(add, wrong, words):
    add(**wrong)
    with pytest.raises(ValueError, match=words):
        metrics.load_all()


def test_an_unknown_name_suggests_a_similar_one():
    with pytest.raises(ValueError, match="no metric named 'map_at_k'; did you mean 'map_at_r'"):
        metrics.load("map_at_k")
