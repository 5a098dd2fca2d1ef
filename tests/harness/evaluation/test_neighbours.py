"""Nearest neighbours against an obvious loop."""

import numpy as np
import pytest

from harness.evaluation import neighbours
from harness.evaluation.neighbours import nearest


def unit(n, d, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_hand(embeddings, k):
    found = []
    for i, row in enumerate(embeddings):
        others = [(-float(row @ other), j) for j, other in enumerate(embeddings) if j != i]
        found.append([j for _, j in sorted(others)[:k]])
    return np.array(found)


@pytest.mark.parametrize("k", [1, 5, 29])
def test_neighbours_are_those_of_a_loop(k, monkeypatch):
    embeddings = unit(30, 6)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 4 * 30 * 7)  # blocks of seven rows
    numbers, similarities = nearest(embeddings, k)
    assert numbers.shape == similarities.shape == (30, k)
    assert np.array_equal(numbers, by_hand(embeddings, k))
    np.testing.assert_allclose(similarities, np.take_along_axis(embeddings @ embeddings.T, numbers, 1), atol=1e-6)


def test_a_copy_is_a_neighbour_and_the_image_itself_is_not():
    numbers, similarities = nearest(np.concatenate([unit(3, 4)] * 2), 1)
    assert numbers.ravel().tolist() == [3, 4, 5, 0, 1, 2]
    np.testing.assert_allclose(similarities, 1, rtol=1e-6)


@pytest.mark.parametrize("k", [0, 3, 9])
def test_more_neighbours_than_others_are_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}, expected 1 to 2"):
        nearest(unit(3, 4), k)
