"""SiMix: numbers worked by hand, loops over virtual examples that are formed, and what it leaves as it is."""

import numpy as np
import pytest
import torch

import baselines
from metrix import rivals
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss

LAMBDAS = {
    "E1": {(0, 1): 1 / 4, (2, 3): 1 / 2, (4, 5): 3 / 4},
    "E2": {(0, 1): 1 / 4, (0, 2): 1 / 2, (1, 2): 3 / 4, (3, 4): 1 / 4},
}
TAKEN = [name for name in baselines.names() if rivals.refusal("simix", name) is None]
WITH_LOOPS = [name for name in TAKEN if name in loops.NAMES]
LABELS = [0, 2, 0, 1, 2, 0, 3]


def drawn(lambdas):
    first, second = torch.tensor(list(lambdas)).T
    return first, second, torch.tensor(list(lambdas.values()), dtype=torch.float64)


def total(of_loss, z, labels, given):
    simix = rivals.create("simix", of_loss)
    return simix.total(of_loss.batch(z, torch.tensor(labels)), given)


def batch():
    """Seven rows, and a weight for each two of one class."""
    z = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return z, {(0, 2): 0.1, (0, 5): 0.8, (1, 4): 0.35, (2, 5): 0.6}


@pytest.mark.parametrize(
    ("name", "hyperparameters", "expected"),
    [
        ("contrastive", {"reduction": "sum"}, (-1.293333333333, -1.757)),
        ("recall_at_k", {}, (0.200675364448, 0.362202196219)),
        ("recall_at_k", {"temperature": 0.1, "include_query": True}, (0.328513559101, 0.482046800326)),
    ],
)
def test_worked_numbers(name, hyperparameters, expected):
    of_loss = loss(name, **hyperparameters)
    values = [
        total(of_loss, embeddings(rows), labels, drawn(LAMBDAS[key])).item()
        for key, (rows, labels) in (("E1", E1), ("E2", E2))
    ]
    assert values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "norm"),
    [
        ("contrastive", {"reduction": "sum"}, 1.2128448),
        ("multi_similarity", {}, 0.3546293),
        ("recall_at_k", {"temperature": 0.1}, 0.2614761),
    ],
)
def test_worked_gradients(name, hyperparameters, norm):
    z = embeddings(E1[0])
    total(loss(name, **hyperparameters), z, E1[1], drawn(LAMBDAS["E1"])).backward()
    assert z.grad is not None
    assert z.grad.norm().item() == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("name", WITH_LOOPS)
def test_equals_loops(name):
    z, lambdas = batch()
    rows = list(loops.unit(z))
    rows += [lam * rows[i] + (1 - lam) * rows[j] for (i, j), lam in lambdas.items()]
    labels = LABELS + [LABELS[i] for i, _ in lambdas]
    learned = {"margin": {"beta": 1.25}}.get(name, {})  # a learnable number is float32
    if name in loops.OF_BATCHES:
        limits = {"recall_at_k": {"ks": (1, 2, 4, 7, 7)}}.get(name, {})  # k stays at most the seven clean rows
        expected = loops.OF_BATCHES[name](np.array(rows), labels, **learned, **limits)
    else:
        m = len(rows)
        sets = [[(rows[a] @ rows[x], float(labels[a] == labels[x])) for x in range(m) if x != a] for a in range(m)]
        expected = sum(loops.FORMULAS[name](labelled) or 0.0 for labelled in sets) / m
    of_loss = loss(name, **learned)
    assert total(of_loss, z, LABELS, drawn(lambdas)).item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in TAKEN if name != "circle"])
def test_gradient_equals_finite_differences(name):
    z, lambdas = batch()
    assert torch.autograd.gradcheck(lambda z: total(loss(name), z, LABELS, drawn(lambdas)), z.requires_grad_())


@pytest.mark.parametrize("name", TAKEN)
def test_the_order_of_the_rows_does_not_matter(name):
    z, lambdas = batch()
    order = [3, 5, 0, 6, 2, 1, 4]
    moved = {(order.index(i), order.index(j)): lam for (i, j), lam in lambdas.items()}
    there = total(loss(name), z, LABELS, drawn(lambdas))
    back = total(loss(name), z[order], [LABELS[i] for i in order], drawn(moved))
    assert there.item() == pytest.approx(back.item(), rel=1e-12)


@pytest.mark.parametrize("name", TAKEN)
def test_without_two_of_a_class_it_is_the_loss_to_the_bit_and_says_so(name):
    z, _ = batch()
    simix = rivals.create("simix", loss(name))
    assert torch.equal(simix(z[:4], torch.arange(4)), simix.loss(z[:4], torch.arange(4)))
    assert simix.means() == {"virtual_rows": 0}
    assert simix.warnings() == (
        "no batch held two examples of a class, so no virtual example was made: the row equals the loss alone",
    )
    simix(z, torch.tensor(LABELS))
    assert simix.means() == {"virtual_rows": 2}
    assert simix.warnings() == ()


def test_draws_one_weight_for_each_two_of_a_class():
    simix = rivals.create("simix", loss("contrastive"), generator=torch.Generator().manual_seed(0))
    batches = simix.loss.batch(torch.randn(200, 3), torch.arange(200) // 20)
    first, second, lam = simix.draw(batches)
    assert lam.shape == (10 * 190,)
    assert (first < second).all()
    assert lam.dtype == torch.float32
    assert lam.mean().item() == pytest.approx(0.5, abs=0.03)
    assert lam.var().item() == pytest.approx(1 / 12, abs=0.01)
    assert lam.min() >= 0
    assert lam.max() < 1
