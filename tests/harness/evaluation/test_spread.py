"""The spread of embeddings, on matrices with known singular values."""

import numpy as np
import pytest

from harness.evaluation.spread import spread


def test_even_directions_have_full_rank_and_equal_rows_have_rank_one():
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    assert spread(axes) == pytest.approx({"embedding std": 0.5, "effective rank": 4.0})
    equal_rows = spread(np.tile([3.0, 4.0, 0.0], (10, 1)))
    assert equal_rows["effective rank"] == pytest.approx(1.0, abs=1e-3)
    assert equal_rows["embedding std"] < 1e-7


def test_effective_rank_by_hand():
    """Singular values √3 and 1 of rows along two axes: shares 0.634 and 0.366, exp(entropy) = 1.928."""
    rows = np.array([[2.0, 0.0], [1.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    shares = np.array([3**0.5, 1.0]) / (3**0.5 + 1)
    assert spread(rows)["effective rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert spread(rows)["effective rank"] == pytest.approx(1.928, abs=1e-3)


def test_fewer_rows_than_dimensions():
    assert spread(np.eye(3, 50))["effective rank"] == pytest.approx(3.0)
