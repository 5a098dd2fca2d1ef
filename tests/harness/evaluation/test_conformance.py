"""The evaluator passes its conformance cases, and evaluators with the usual faults do not."""

import numpy as np

from harness.evaluation.conformance import conformance
from harness.evaluation.retrieval import Evaluation


def naive(embeddings, labels, ks=(1, 2, 4, 8), gallery=None, gallery_labels=None, stable=True, **_):
    """The evaluator of many repositories: sort, drop the first, count what follows; every query counts."""
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit.T), axis=1, kind="stable")[:, 1:]
    right = labels[order] == labels[:, None]
    values = {f"R@{k}": float(right[:, :k].any(axis=1).mean()) for k in ks}
    return Evaluation(values | {"MAP@R": 0.0, "R-Precision": 0.0}, {}, np.empty(0), np.empty(0), 0, "naive")


def test_an_evaluator_with_the_usual_faults_does_not_conform():
    with np.errstate(all="ignore"):
        problems = conformance(naive)
    assert any(p.startswith("constant embedding scored R@1 = ") for p in problems)
    assert any(p.startswith("embedding with a NaN value was not rejected") for p in problems)
    assert any(p.startswith("classes of one image scored") for p in problems)
    assert any(p.startswith("perfect embedding scored MAP@R = 0.000, expected 1.000") for p in problems)


def refusing(**arguments):
    raise ValueError("never")


def test_an_evaluator_that_rejects_everything_does_not_conform():
    assert "hand-computed case: rejected (never)" in conformance(refusing)
