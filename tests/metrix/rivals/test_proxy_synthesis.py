"""Proxy synthesis: numbers worked by hand, loops over mixed vectors that are formed, partners, degenerate batches."""

import numpy as np
import pytest
import torch

import baselines
from metrix import rivals
from metrix.rivals.proxy_synthesis import partners
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss

TAKEN = [name for name in baselines.names() if rivals.refusal("proxy_synthesis", name) is None]
WITH_LOOPS = [name for name in TAKEN if name in loops.NAMES]
LABELS = [4, 0, 0, 1, 0, 0, 1, 0]
PARTNERS = [7, 0, 0, 2, 3, 3, 5, 6]  # no shift separates all: the nearest earlier one of another class


def total(of_loss, z, labels, lam=0.7, **options):
    return rivals.create("proxy_synthesis", of_loss, **options).total(of_loss.batch(z, torch.tensor(labels)), lam)


def create(name):
    generator = torch.Generator().manual_seed(1)
    options = {"centres": 3} if name == "soft_triple" else {}
    return baselines.create(name, num_classes=5, dim=4, generator=generator, **options).double()


def batch():
    return torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("norm_softmax", {}, (3.431079701327, 10.103160328094)),
        ("norm_softmax", {"ratio": 0.5}, (3.895673015959, 10.495759835498)),
        ("proxy_nca", {}, (0.898052843882, 1.925631081737)),
        ("proxy_nca_pp", {}, (3.128458398286, 9.143400815810)),
        ("cosface", {}, (29.585964205708, 52.741704296792)),
        ("arcface", {}, (27.499949279043, 53.976427576719)),
        ("soft_triple", {}, (1.226130793269, 7.088399092666)),
        ("proxy_anchor", {}, (33.173628624964, 41.559993543132)),
    ],
)
def test_worked_numbers(name, options, expected):
    values = [total(loss(name), embeddings(rows), labels, **options).item() for rows, labels in (E1, E2)]
    assert values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "norms"), [("norm_softmax", (4.3039127, 6.8848371)), ("proxy_anchor", (7.1361852, 3.1746094))]
)
def test_worked_gradients(name, norms):
    z, of_loss = embeddings(E1[0]), loss(name)
    gradients = torch.autograd.grad(total(of_loss, z, E1[1]), (z, of_loss.proxies))
    assert [g.norm().item() for g in gradients] == pytest.approx(norms, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (E1[1], [4, 5, 0, 1, 2, 3]),
        (E2[1], [3, 4, 5, 0, 1, 2]),
        ([0, 1, 2], [2, 0, 1]),
        ([0, 0, 0, 1], [3, 3, 3, 2]),
        (LABELS, PARTNERS),
        ([5, 5, 5], []),
        ([5], []),
    ],
)
def test_partners_are_of_another_class(labels, expected):
    assert partners(labels) == expected


@pytest.mark.parametrize("lam", [0.7, 0.5, 0.0, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.25, 0.1])
@pytest.mark.parametrize("name", WITH_LOOPS)
def test_equals_loops(name, ratio, lam):
    """The clean loss of more rows and more classes: mixed vectors, numbered by their pair of classes."""
    z, of_loss = batch(), create(name)
    w = loops.unit(of_loss.proxies.detach())
    rows, labels, classes, pairs = list(loops.unit(z)), [*LABELS], list(w), []
    for i in range(int(ratio * 8)):
        pair = LABELS[i], LABELS[PARTNERS[i]]
        if pair not in pairs:
            pairs.append(pair)
            classes.append(loops.unit(lam * w[pair[0]] + (1 - lam) * w[pair[1]]))
        rows.append(loops.unit(lam * rows[i] + (1 - lam) * rows[PARTNERS[i]]))
        labels.append(5 + pairs.index(pair))
    expected = loops.clean(name, rows, labels, np.array(classes))
    if name == "soft_triple":
        expected += loops.soft_triple_regulariser(w) - loops.soft_triple_regulariser(np.array(classes))
    value = total(of_loss, z, LABELS, lam, ratio=ratio).item()
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("name", TAKEN)
def test_gradient_equals_finite_differences(name):
    of_loss = create(name)
    z = batch().requires_grad_()
    z_slope, w_slope = torch.autograd.grad(total(of_loss, z, LABELS, 0.3), (z, of_loss.proxies))
    step = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    direction = torch.randn(of_loss.proxies.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))

    def moved(size):
        other = create(name)
        other.proxies.data += size * direction
        return total(other, z.detach() + size * step, LABELS, 0.3).item()

    expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    slope = (z_slope * step).sum() + (w_slope * direction).sum()
    assert slope.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", TAKEN)
def test_with_one_class_it_is_the_loss_to_the_bit_and_says_so(name):
    z = batch()
    synthesis = rivals.create("proxy_synthesis", create(name))
    labels = torch.full((8,), 3)
    assert torch.equal(synthesis(z, labels), synthesis.loss(z, labels))
    assert synthesis.means() == {"new_classes": 0}
    assert synthesis.warnings() == (
        "no batch held two classes, so no synthetic class was made: the row equals the loss alone",
    )
    synthesis(z, torch.tensor(LABELS))
    assert synthesis.means() == {"new_classes": 4 / 2}
    assert synthesis.warnings() == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TAKEN)
def test_the_middle_of_opposite_vectors_is_finite(name, dtype):
    of_loss = create(name).to(dtype)
    of_loss.proxies.data[1] = -of_loss.proxies.data[0]
    z = batch().to(dtype)[:2]
    z[1] = -z[0]
    z.requires_grad_()
    value = total(of_loss, z, [0, 1], lam=0.5)
    gradients = torch.autograd.grad(value, (z, of_loss.proxies))
    assert value.isfinite()
    assert all(g.isfinite().all() for g in gradients)


def test_draws_one_weight_for_each_step():
    synthesis = rivals.create("proxy_synthesis", create("norm_softmax"), generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor([synthesis.draw(synthesis.loss.batch(batch(), torch.tensor(LABELS))) for _ in range(2000)])
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)
