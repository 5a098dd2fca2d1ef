"""Analysis of embedding spaces: numbers on the unit circle, and double loops."""

import math

import pytest
import torch

import baselines
import metrix
from tests.baselines import loops


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def random(n, seed=0):
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_alignment_of_right_angles():
    """Squared distances: 2 at 90°, 4 at 180°; class 0 has pairs at 90°, 90° and 180°, class 1 at 90°."""
    z = on_circle(0, 90, 180, 10, 100, 300)
    assert metrix.alignment(3 * z, torch.tensor([0, 0, 0, 1, 1, 2])) == pytest.approx((2 + 2 + 4 + 2) / 4)
    assert math.isnan(metrix.alignment(z, torch.arange(6)))


def test_uniformity_of_a_square():
    """Four pairs at squared distance 2 and two at 4."""
    expected = math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)
    assert metrix.uniformity(on_circle(0, 90, 180, 270)) == pytest.approx(expected)
    assert metrix.uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)


def test_utilization_is_the_distance_to_the_nearest():
    queries, train = on_circle(0, 180), on_circle(90, 120)
    assert metrix.utilization(queries, train) == pytest.approx((2 + 1) / 2)  # 2 − 2cos 90° and 2 − 2cos 60°
    drawn = {metrix.utilization(queries, train, 1, torch.Generator().manual_seed(k)) for k in range(8)}
    assert {round(u, 9) for u in drawn} == {2.0, round((3 + 1) / 2, 9)}
    with pytest.raises(ValueError, match=r"points = 3 .* \[1, 2\]"):
        metrix.utilization(queries, train, 3)


def test_chunks_change_nothing(monkeypatch):
    z, labels = random(30), torch.arange(30) % 4
    loss = baselines.create("multi_similarity")

    def values():
        return (
            metrix.uniformity(z),
            metrix.utilization(z, z[:7]),
            metrix.positivity(z, labels, loss, [0.3, 0.6]).measured,
        )

    whole = values()
    monkeypatch.setattr("metrix.analysis.AT_ONCE", 50)
    assert values() == (pytest.approx(whole[0]), pytest.approx(whole[1]), whole[2])


def test_positivity_equals_loops():
    """The sign of the derivative, worked out for each anchor and mixed example."""
    z, labels, beta, gamma, m = loops.unit(random(8, 3)), [0, 0, 1, 1, 2, 2, 2, 3], 18.0, 75.0, 0.77
    result = metrix.positivity(
        torch.tensor(z), torch.tensor(labels), baselines.create("multi_similarity"), [0.2, 0.8]
    )
    for k, lam in enumerate((0.2, 0.8)):
        positive = below = members = 0
        for a in range(8):
            s = [
                z[a] @ loops.unit(lam * z[i] + (1 - lam) * z[j])
                for i, j in loops.mixed_set(z[a], a, "pos-neg", labels, labels[a])
            ]
            attract = [lam * math.exp(-beta * (t - m)) for t in s]
            repel = [(1 - lam) * math.exp(gamma * (t - m)) for t in s]
            for t, x, y in zip(s, attract, repel, strict=True):
                members += 1
                positive += y / (1 + sum(repel)) <= x / (1 + sum(attract))
                below += t <= m + math.log(lam / (1 - lam)) / (beta + gamma)
        assert result.measured[k] == pytest.approx(positive / members)
        assert result.closed_form is not None
        assert result.gap is not None
        assert result.closed_form[k] == pytest.approx(below / members)
        assert result.gap[k] == pytest.approx((positive - below) / members)


def test_closed_form_is_exact_for_a_single_mixed_example():
    """Two examples of a class and one of another: one mixed example for each of the two anchors."""
    for degrees in (5.0, 20.0, 35.0, 50.0):
        z, labels = on_circle(0, degrees, 80), torch.tensor([0, 0, 1])
        result = metrix.positivity(z, labels, baselines.create("multi_similarity"))
        assert result.measured == result.closed_form
        assert set(result.measured) <= {0.0, 0.5, 1.0}


def test_positivity_refuses_what_it_cannot_say():
    with pytest.raises(ValueError, match="NCA has no mixed examples"):
        metrix.positivity(random(4), torch.tensor([0, 0, 1, 1]), baselines.create("nca"))
    with pytest.raises(ValueError, match="nothing to mix"):
        metrix.positivity(random(4), torch.arange(4), baselines.create("contrastive"))
    assert metrix.positivity(random(4), torch.tensor([0, 0, 1, 1]), baselines.create("circle")).gap is None
