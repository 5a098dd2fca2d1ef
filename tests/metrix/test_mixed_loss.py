"""ℓ̃ at the embedding level: numbers worked by hand, loops over materialised vectors, finite differences."""

import math
from typing import Any

import pytest
import torch

import baselines
from metrix import Metrix, refusal
from metrix.pairs import PAIRS
from tests.baselines import loops

WITH_FORM = [name for name in baselines.names() if baselines.describe(name).metrix]
BATCHES = {
    "balanced": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unbalanced": [4, 0, 0, 1, 0, 0, 1, 2],
    "one class": [1, 1, 1, 1],
    "singletons": [0, 1, 2, 3],
    "two": [3, 3],
    "one example": [2],
}


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


def batch(name, dim=4, seed=0):
    labels = torch.tensor(BATCHES[name])
    embeddings = torch.randn(len(labels), dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if len(labels) > 3:
        embeddings[1] = embeddings[0]  # duplicates are part of life
    return embeddings, labels


def create(name, **hyperparameters):
    generator = torch.Generator().manual_seed(1)
    loss = baselines.create(name, num_classes=5, dim=4, generator=generator, **hyperparameters).double()
    proxies = loss.proxies.detach().numpy() if loss.learns_classes else None
    return loss, proxies


FIRST = (on_circle(0, 25, 40, 95, 180, 230), torch.tensor([0, 0, 1, 1, 2, 2]), 0.7)
SECOND = (on_circle(10, 35, 70, 50, 140, 300), torch.tensor([0, 0, 0, 1, 1, 2]), 0.35)  # the last has no positive


@pytest.mark.parametrize(
    ("case", "name", "expected"),
    [
        (
            FIRST,
            "contrastive",
            (-0.463567187888730, -1.045035249648310, -1.515972125168804, -1.528307893524514, -2.122809009199232),
        ),
        (
            FIRST,
            "multi_similarity",
            (0.178268465126378, 0.593273847803348, 0.461894598680721, 0.447878667338162, 0.212018843321291),
        ),
        (
            SECOND,
            "contrastive",
            (-0.351265647043896, -0.183716349739197, -0.055185954650396, -0.172623533345498, -0.103425396590963),
        ),
        (
            SECOND,
            "multi_similarity",
            (0.445708673202913, 0.856040656076728, 1.043283351227870, 0.882180959787667, 1.054697753963222),
        ),
    ],
)
def test_worked_numbers(case, name, expected):
    embeddings, labels, lam = case
    options: dict[str, Any] = {"reduction": "sum"} if name == "contrastive" else {}
    loss = baselines.create(name, **options)
    values = [loss(embeddings, labels).item()]
    for pairs in ("pos-neg", "anc-neg"):
        for renormalize in (False, True):
            criterion = Metrix(loss, renormalize=renormalize)
            values.append(criterion.mixed_loss(embeddings, labels, pairs=pairs, lam=lam).item())
    assert values == pytest.approx(expected, abs=1e-9)


WITH_LOOPS = [name for name in WITH_FORM if name in loops.NAMES]
COMBINATIONS = [(name, pairs) for name in WITH_LOOPS for pairs in PAIRS if not refusal(name, pairs=pairs)]


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize(("name", "pairs"), COMBINATIONS)
def test_equals_loops(name, pairs, shape, renormalize):
    embeddings, labels = batch(shape)
    loss, proxies = create(name)
    criterion = Metrix(loss, renormalize=renormalize)
    value = criterion.mixed_loss(embeddings, labels, pairs=pairs, lam=0.3).item()
    expected = loops.mixed(name, embeddings, labels.tolist(), pairs, 0.3, renormalize, proxies)
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(("name", "pairs"), COMBINATIONS)
def test_one_weight_for_each_pair_equals_loops(name, pairs):
    embeddings, labels = batch("unbalanced")
    loss, proxies = create(name)
    rows = 5 if name == "proxy_anchor" and pairs == "anc-neg" else 8  # there the first of a pair is a proxy
    lam = torch.rand(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    value = Metrix(loss).mixed_loss(embeddings, labels, pairs=pairs, lam=lam).item()
    expected = loops.mixed(name, embeddings, labels.tolist(), pairs, lambda i, j: lam[i, j].item(), proxies=proxies)
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(("name", "pairs"), [c for c in COMBINATIONS if c[1] in ("pos-neg", "anc-neg")])
def test_hardest_equals_loops(name, pairs):
    embeddings, labels = batch("unbalanced", seed=4)
    loss, proxies = create(name)
    z = torch.nn.functional.normalize(embeddings)
    first = z
    classes = labels
    if name == "proxy_anchor" and pairs == "anc-neg":
        first, classes = torch.nn.functional.normalize(loss.proxies.detach()), torch.arange(5)
    similarities = (first @ z.T).masked_fill(classes[:, None] == labels, -2.0)
    nearest = [sorted(range(8), key=lambda j, row=row: (-row[j].item(), j))[:2] for row in similarities]
    value = Metrix(loss, hardest=2).mixed_loss(embeddings, labels, pairs=pairs, lam=0.6).item()
    expected = loops.mixed(
        name, embeddings, labels.tolist(), pairs, 0.6, proxies=proxies, chosen=lambda i, j: j in nearest[i]
    )
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(("name", "pairs"), [c for c in COMBINATIONS if c[0] != "circle"])
def test_gradient_equals_finite_differences(name, pairs):
    embeddings, labels = batch("unbalanced", seed=3)
    embeddings[1] += 0.1
    loss, _ = create(name)
    rows = 5 if name == "proxy_anchor" and pairs == "anc-neg" else 8
    for lam in (0.3, torch.rand(rows, 8, dtype=torch.float64)):
        for renormalize in (True, False):
            criterion = Metrix(loss, renormalize=renormalize)
            assert torch.autograd.gradcheck(
                lambda z: criterion.mixed_loss(z, labels, pairs=pairs, lam=lam),  # noqa: B023
                embeddings.clone().requires_grad_(),
            )


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("name", "pairs"), COMBINATIONS)
def test_chunks_change_nothing(name, pairs, renormalize, monkeypatch):
    embeddings, labels = batch("unbalanced", seed=6)
    results = []
    for size in (10**9, 50):
        monkeypatch.setattr("baselines.chunks.CHUNK", size)
        z = embeddings.clone().requires_grad_()
        loss, _ = create(name)
        value = Metrix(loss, renormalize=renormalize).mixed_loss(z, labels, pairs=pairs, lam=0.45)
        (2 * value).backward()
        results.append([value.detach(), z.grad, *(p.grad for p in loss.parameters())])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in WITH_LOOPS if baselines.find(n).anchors == "examples"])
def test_lambda_one_is_the_positives_alone_with_multiplicity(name):
    """Under λ = 1 a mixed example is its first constituent, once for each of its partners."""
    embeddings, labels = batch("balanced", seed=2)
    loss, proxies = create(name)
    value = Metrix(loss).mixed_loss(embeddings, labels, pairs="pos-neg", lam=1.0).item()
    z = loops.unit(embeddings)
    if baselines.find(name).mixed == "anchors":
        expected = loops.mixed(name, z, labels.tolist(), "pos-neg", 1.0, proxies=proxies)
    else:
        expected = 0.0
        for a in range(9):
            own = [x for x in range(9) if x != a and labels[x] == labels[a]]
            expected += loops.FORMULAS[name]([(z[a] @ z[x], 1.0) for x in own for _ in range(6)]) or 0.0
        expected /= 9
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(("name", "pairs"), COMBINATIONS)
def test_the_order_of_the_batch_does_not_matter(name, pairs):
    embeddings, labels = batch("unbalanced", seed=9)
    embeddings[1] += 0.1
    loss, _ = create(name)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    there = Metrix(loss).mixed_loss(embeddings, labels, pairs=pairs, lam=0.7)
    back = Metrix(loss).mixed_loss(embeddings[order], labels[order], pairs=pairs, lam=0.7)
    assert there.item() == pytest.approx(back.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "pairs"), COMBINATIONS)
def test_finite_at_the_ends_of_the_range(name, pairs, dtype):
    """Equal and opposite embeddings, and λ = ½, where the mix of two opposite vectors vanishes."""
    axis = torch.eye(4, dtype=dtype)
    embeddings = torch.cat([axis[:2], axis[:2], -axis[:2], -axis[:2]]).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1, 2, 0, 1, 2])
    loss, _ = create(name)
    for lam in (0.5, 0.3, 0.0, 1.0):
        for renormalize in (True, False):
            value = Metrix(loss, renormalize=renormalize).mixed_loss(embeddings, labels, pairs=pairs, lam=lam)
            (gradient,) = torch.autograd.grad(value, embeddings)
            assert value.isfinite()
            assert gradient.isfinite().all()
