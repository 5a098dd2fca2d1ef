"""ℓ̃ at the embedding level: numbers worked by hand, loops over materialised vectors, finite differences."""

import math

import pytest
import torch

import baselines
from metrix import Metrix, refusal
from tests.baselines import loops

WITH_FORM = [name for name in baselines.names() if baselines.describe(name).metrix]
PAIRS = ("pos-neg", "anc-neg", "pos-pos", "neg-neg")
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
    loss = baselines.create(name, **({"reduction": "sum"} if name == "contrastive" else {}))
    values = [loss(embeddings, labels).item()]
    for pairs in ("pos-neg", "anc-neg"):
        for renormalize in (False, True):
            criterion = Metrix(loss, renormalize=renormalize)
            values.append(criterion.mixed_loss(embeddings, labels, pairs=pairs, lam=lam).item())
    assert values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("name", WITH_FORM)
def test_equals_loops(name, shape, pairs, renormalize):
    if refusal(name, pairs=pairs):
        pytest.skip(refusal(name, pairs=pairs))
    embeddings, labels = batch(shape)
    loss, proxies = create(name)
    criterion = Metrix(loss, renormalize=renormalize)
    value = criterion.mixed_loss(embeddings, labels, pairs=pairs, lam=0.3).item()
    expected = loops.mixed(name, embeddings, labels.tolist(), pairs, 0.3, renormalize, proxies)
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("name", WITH_FORM)
def test_gradient_equals_finite_differences(name, pairs):
    if refusal(name, pairs=pairs) or name == "circle":
        pytest.skip(refusal(name, pairs=pairs) or "the weights of circle are constants to its gradient")
    embeddings, labels = batch("unbalanced", seed=3)
    embeddings[1] += 0.1
    loss, _ = create(name)
    for lam in (0.3, torch.rand(5 if name == "proxy_anchor" and pairs == "anc-neg" else 8, 8, dtype=torch.float64)):
        for renormalize in (True, False):
            criterion = Metrix(loss, renormalize=renormalize)
            assert torch.autograd.gradcheck(
                lambda z: criterion.mixed_loss(z, labels, pairs=pairs, lam=lam),  # noqa: B023
                embeddings.clone().requires_grad_(),
            )
