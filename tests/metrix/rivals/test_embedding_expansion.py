"""Embedding expansion: numbers worked by hand, a loop over points that are formed, ties, and degenerate batches."""

from dataclasses import replace

import pytest
import torch

import baselines
from metrix import rivals
from metrix.rivals.embedding_expansion import partners
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss

TAKEN = [name for name in baselines.names() if rivals.refusal("embedding_expansion", name) is None]
LABELS = [0, 2, 0, 1, 2, 0, 3, 1, 1, 1]
PARTNERS = [2, 4, 0, 7, 1, 0, 6, 3, 9, 8]


def create(of_loss, **options):
    return rivals.create("embedding_expansion", of_loss, **options)


def total(of_loss, z, labels, **options):
    return create(of_loss, **options).total(of_loss.batch(z, torch.tensor(labels)), None)


def batch():
    return torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("contrastive", {}, (0.213333333333, 0.407739820200)),
        ("contrastive", {"pool": "example"}, (-0.101977029619, 0.174317262629)),
        ("contrastive", {"renormalize": False}, (0.213333333333, 0.36)),
        ("multi_similarity", {}, (0.171645957604, 0.636727750053)),
        ("triplet", {}, (0.18, 0.621482919090)),
    ],
)
def test_worked_numbers(name, options, expected):
    of_loss = loss(name, **({"reduction": "sum"} if name == "contrastive" else {}))
    values = [total(of_loss, embeddings(rows), labels, **options).item() for rows, labels in (E1, E2)]
    assert values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "norm"),
    [("contrastive", {"reduction": "sum"}, 1.6545157), ("multi_similarity", {}, 0.5341897)],
)
def test_worked_gradients(name, hyperparameters, norm):
    z = embeddings(E1[0])
    total(loss(name, **hyperparameters), z, E1[1]).backward()
    assert z.grad is not None
    assert z.grad.norm().item() == pytest.approx(norm, abs=1e-6)


def test_partners_are_the_neighbours_in_a_class():
    labels = torch.tensor(LABELS)
    assert partners(labels[:, None] == labels).tolist() == PARTNERS


def looped(z, points, renormalize, pool):
    """The similarities of all rows, those of negatives from sets of points that are formed."""
    z, n = loops.unit(z), len(z)
    sets = []
    for i, q in enumerate(PARTNERS):
        chord = [((points + 1 - t) * z[i] + t * z[q]) / (points + 1) for t in range(1, points + 1)] if q != i else []
        sets.append([z[i], *(loops.unit(v) if renormalize else v for v in chord)])
    similarities = torch.tensor(z @ z.T)
    for a in range(n):
        for x in range(n):
            if LABELS[a] != LABELS[x]:
                ours, theirs = (
                    [i for i in range(n) if (LABELS[i] == LABELS[k] if pool == "class" else i == k)] for k in (a, x)
                )
                similarities[a, x] = max(float(u @ v) for i in ours for j in theirs for u in sets[i] for v in sets[j])
    return similarities


@pytest.mark.parametrize("pool", ["class", "example"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_equals_loops_with_every_loss(points, renormalize, pool):
    z = batch()
    expected = looped(z, points, renormalize, pool)
    for name in TAKEN:
        of_loss = loss(name)
        clean = of_loss.clean(replace(of_loss.batch(z, torch.tensor(LABELS)), similarities=expected))
        value = total(of_loss, z, LABELS, points=points, renormalize=renormalize, pool=pool)
        assert value.item() == pytest.approx(clean.item(), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"pool": "example"}, {"renormalize": False}, {"points": 3}])
@pytest.mark.parametrize("name", [name for name in TAKEN if name != "circle"])
def test_gradient_equals_finite_differences(name, options):
    z = batch().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: total(loss(name), z, LABELS, **options), z)


@pytest.mark.parametrize("pool", ["class", "example"])
def test_equal_maxima_share_the_gradient_equally(pool):
    """Three of a class and the middles of 1 and 2, 2 and 1, 3 and 1, all at the similarity 0.6 to the one other.

    Of a sixth for each, the first gets 1 + 3/2, the second 1 + 2/2 and the third 1 + 1/2.
    """
    z = torch.tensor([[0.0, 0, 1], [0.8, 0, 0.6], [0, 0.8, 0.6], [-0.8, 0, 0.6]], dtype=torch.float64)
    of_loss = loss("contrastive", reduction="sum", margin=-1.0)
    batch = of_loss.batch(z, torch.tensor([0, 1, 1, 1]))
    similarities = batch.similarities.requires_grad_()
    create(of_loss, points=1, renormalize=False, pool=pool).total(batch, None).backward()
    assert similarities.grad is not None
    shares = torch.tensor([2.5, 2.0, 1.5], dtype=torch.float64) / 6
    negatives, anchors = 3, 4
    torch.testing.assert_close(similarities.grad[0, 1:], shares * negatives / anchors)


@pytest.mark.parametrize("pool", ["class", "example"])
@pytest.mark.parametrize("name", TAKEN)
def test_with_singletons_it_is_the_loss_to_the_bit_and_says_so(name, pool):
    z = batch()
    expansion = create(loss(name), pool=pool)
    for dtype in (torch.float64, torch.float32):
        alone = z.to(dtype)
        assert torch.equal(expansion(alone, torch.arange(10)), expansion.loss(alone, torch.arange(10)))
    assert expansion.means() == {"synthetic_points": 0}
    assert expansion.warnings() == (
        "no batch held two examples of a class, so no synthetic point was made: the row equals the loss alone",
    )
    expansion(z, torch.tensor(LABELS))
    assert expansion.means() == {"synthetic_points": 2 * 9 / 3}
    assert expansion.warnings() == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TAKEN)
def test_the_middle_of_opposite_examples_is_finite(name, dtype):
    axis = torch.eye(4, dtype=dtype)
    z = torch.cat([axis[:2], -axis[:2]]).requires_grad_()
    value = total(loss(name).to(dtype), z, [0, 1, 0, 1], points=1)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("points", [0, -2, True])
def test_refuses_points_that_are_no_number_of_points(points):
    with pytest.raises(ValueError, match=f"points = {points}"):
        create(loss("contrastive"), points=points)
