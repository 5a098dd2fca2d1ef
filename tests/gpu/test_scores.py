"""The evaluator on a GPU: the scores of the CPU, on cases of known score, with ties, and at full size."""

from functools import partial

import numpy as np
import torch

from harness.evaluation.conformance import conformance
from harness.evaluation.retrieval import Evaluation, evaluate
from tests.gpu.place import Place
from tests.performance.retrieval import products_like


def test_the_evaluator_is_right_and_counts_ties_equally(place: Place) -> None:
    """The conformance set passes, and embeddings with ties give every query the rank that the CPU gives it."""
    problems = conformance(partial(on, place))
    assert not problems, "; ".join(problems)
    for name, embeddings, labels in tied():
        here, there = evaluate(embeddings, labels), on(place, embeddings, labels)
        assert np.array_equal(here.best_ranks, there.best_ranks), f"{name}: other ranks than on the CPU"
        assert here.values == there.values, f"{name}: {there.values}, on the CPU {here.values}"


def test_a_large_embedding_scores_the_same_on_both(place: Place) -> None:
    """At the size of Stanford Online Products scores agree; a few ranks differ where similarities nearly tie."""
    torch.set_num_threads(place.cores)
    for spread in (2.2, 100.0):
        embeddings, labels = products_like(place.sizes.gallery, place.sizes.dim, spread)
        here, there = evaluate(embeddings, labels, ks=(1, 10, 100)), on(place, embeddings, labels, ks=(1, 10, 100))
        other = int((here.best_ranks != there.best_ranks).sum())
        apart = max(abs(here.values[score] - there.values[score]) for score in here.values)
        size = f"{place.sizes.gallery:,} × {place.sizes.dim}, R@1 {here.values['R@1']:.3f}"
        place.note(f"{size}: queries ranked otherwise than on the CPU", other, f"of {len(here.best_ranks):,}")
        place.note(f"{size}: the largest difference of a score", apart, "")
        assert there.engine == "torch"
        assert apart < 1e-4, f"{there.values}, on the CPU {here.values}"
        near = here.best_ranks <= 100
        assert (here.best_ranks[near] != there.best_ranks[near]).mean() < 1e-3


def on(place: Place, embeddings, labels, gallery=None, **options) -> Evaluation:
    """`evaluate` on the place's device."""

    def moved(some):
        return None if some is None else torch.from_numpy(np.array(some)).to(place.device)

    return evaluate(moved(embeddings), labels, gallery=moved(gallery), engine="torch", **options)


def tied():
    """(name, embeddings, labels) whose similarities tie: few directions, copies, one place for all."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 40, 600)
    yield "corners of a cube", generator.choice([-1.0, 1.0], (600, 4)).astype(np.float32), labels
    yield "copies", generator.standard_normal((20, 64)).astype(np.float32)[generator.integers(0, 20, 600)], labels
    yield "one place", np.tile(generator.standard_normal(64), (600, 1)).astype(np.float32), labels
