"""Ranks by symmetry against a plain loop over whole rows, with many ties, at every depth and border of blocks."""

import numpy as np
import pytest
import torch

from harness.evaluation import symmetry
from harness.evaluation.metrics import BEYOND

TIE = 1e-6


@pytest.fixture(params=["numpy", "torch"], autouse=True)
def arrays(request, monkeypatch):
    """What computes: numpy as on a CPU, and torch as on a GPU, but here."""
    if request.param == "torch":
        monkeypatch.setattr(symmetry, "_arrays", symmetry._Torch)
    return symmetry._arrays(torch.device("cpu"))


def cut(monkeypatch, rows):
    """Make blocks of so many rows."""
    monkeypatch.setattr(symmetry, "BLOCK", rows)
    monkeypatch.setattr(symmetry, "GPU_BLOCK", rows)


def corners(rng, n, distinct=2**16):
    """Return (n, 16) of −1 and 1, copies of `distinct` rows. Their products are exact, and most of these tie."""
    return rng.choice([-1, 1], (distinct, 16))[rng.integers(0, distinct, n)]


def by_loops(signs, labels, depths):
    """{row: ranks of its positives}: exact up to the row's depth and for the best positive, else BEYOND."""
    found = {}
    for i, row in enumerate(signs @ signs.T):
        alike = (labels == labels[i]) & (np.arange(len(labels)) != i)
        positives = np.sort(row[alike])[::-1]
        ranks = [j + int((row[labels != labels[i]] >= p).sum()) for j, p in enumerate(positives, 1)]
        if ranks:
            found[i] = [rank if rank <= depths[i] or j == 0 else BEYOND for j, rank in enumerate(ranks)]
    return found


def by_symmetry(signs, labels, depths):
    found = {}
    for rows, ranks in symmetry.ranks(torch.from_numpy(signs.astype(np.float32) / 4), labels, depths, TIE):
        assert ranks.dtype == np.int64
        for row, own in zip(rows.tolist(), ranks.tolist(), strict=True):
            count = int((labels == labels[row]).sum()) - 1
            assert set(own[count:]) <= {BEYOND}
            assert row not in found
            found[row] = own[:count]
    return found


@pytest.mark.parametrize("block", [1, 7, 20, 768], ids=lambda rows: f"blocks of {rows}")
@pytest.mark.parametrize("distinct", [1, 3, 40, 2**16], ids=lambda n: f"{n} distinct")
@pytest.mark.parametrize("deepest", [1, 12, 300])
def test_equals_the_loop(monkeypatch, block, distinct, deepest):
    cut(monkeypatch, block)
    rng = np.random.default_rng(block)
    labels = rng.permutation(np.concatenate([np.arange(20), rng.integers(20, 40, 180), rng.integers(40, 42, 60)]))
    signs, depths = corners(rng, 260, distinct), rng.integers(1, deepest + 1, 260)
    assert by_symmetry(signs, labels, depths) == by_loops(signs, labels, depths)


@pytest.mark.parametrize("n", [*range(1, 35), 47, 48, 49, 63, 64, 65, 95, 96, 97, 128, 129])
def test_sets_that_fill_blocks_just_so(monkeypatch, n):
    cut(monkeypatch, 32)
    rng = np.random.default_rng(n)
    for classes in (1, n, 1 + n // 2, 1 + n // 6):
        labels, signs = rng.integers(0, classes, n), corners(rng, n)
        for depths in (np.full(n, n), np.maximum(1, np.bincount(labels)[labels] - 1)):
            assert by_symmetry(signs, labels, depths) == by_loops(signs, labels, depths)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("add", [-1, 0, 1], ids=lambda add: f"{add:+}")
def test_many_blocks_in_one_thread_or_several(monkeypatch, threads, add):
    cut(monkeypatch, 64)
    n = 8 * 64 + add
    rng = np.random.default_rng(n)
    labels = np.repeat(np.arange(n), 4)[:n]
    labels[rng.integers(0, n, 120)] = n  # a class larger than a block
    signs, depths = corners(rng, n), np.full(n, 40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = by_symmetry(signs, labels, depths)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found == by_loops(signs, labels, depths)


def test_blocks_of_the_real_size():
    n = 2 * symmetry.BLOCK + 1
    rng = np.random.default_rng(0)
    labels, signs = rng.integers(0, n // 4, n), corners(rng, n)
    depths = np.full(n, 40)
    assert by_symmetry(signs, labels, depths) == by_loops(signs, labels, depths)


def test_more_equal_answers_than_a_byte_can_count(monkeypatch):
    n = 2100  # 263 words of eight
    cut(monkeypatch, n)
    signs, labels = np.ones((n, 16), int), np.repeat(np.arange(n // 2), 2)
    assert by_symmetry(signs, labels, np.ones(n, int)) == {row: [n - 1] for row in range(n)}


def test_a_candidate_within_the_tie_comes_first():
    angles = np.array(
        [0.0, 0.5, -0.5 - 1e-6, -0.5 - 4e-6, 3.0]
    )  # similarities to the first: cos 0.5 − 5e-7 and − 2e-6
    vectors = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    _, ranks = next(symmetry.ranks(vectors, np.array([0, 0, 1, 2, 3]), np.full(5, 5), TIE))
    assert ranks[0].tolist() == [2]


def test_zero_has_one_key_whatever_its_sign(arrays):
    one = np.ones((1, 1), np.float32)
    block = symmetry._Block(arrays, arrays.put(one), np.array([0]), np.array([1]), TIE)
    values = np.array([1.0, 0.5, 0.0, -0.0, -1.0], np.float32)
    keys = arrays.fetch(block._keys(arrays.put(np.zeros(5, int)), arrays.put(values)))
    assert np.sign(np.diff(keys)).tolist() == [1, 1, 0, 1]
    last = block._keys(arrays.put(np.array([1])), arrays.put(np.array([np.inf], np.float32)))
    assert arrays.fetch(last)[0] > keys.max()
