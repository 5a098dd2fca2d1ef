"""i-Mix: worked numbers, a loop over formed vectors, and mixed images apart from the clean ones."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from metrix import rivals
from metrix.rivals.i_mix import Drawn
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss

SUM: dict[str, Any] = {"reduction": "sum"}
DRAWN = Drawn(torch.tensor([2, 0, 1, 3, 5, 4]), torch.tensor([0.7, 0.6, 0.9, 0.5, 0.8, 1.0], dtype=torch.float64))


def i_mix(wrapped, **options):
    return rivals.create("i_mix", wrapped, generator=torch.Generator().manual_seed(0), **options)


def total(criterion, z, labels, drawn=DRAWN):
    return criterion.total(criterion.loss.batch(z, labels), drawn)


@pytest.mark.parametrize(
    ("name", "options", "first", "second"),
    [
        ("contrastive", SUM, -0.175272535725, 0.093846507532),
        ("contrastive", {}, -0.208605869059, -0.051248482456),
        ("multi_similarity", {}, 0.065597560681, 0.426535186883),
        ("nca", {}, 0.518332888063, 4.114725138727),
        ("norm_softmax", {}, 0.520102572269, 8.622071866457),
        ("arcface", {}, 9.383154269658, 48.929113663964),
    ],
)
def test_worked_numbers(name, options, first, second):
    criterion = i_mix(loss(name, **options), at="embedding")
    for (rows, labels), expected in ((E1, first), (E2, second)):
        assert total(criterion, embeddings(rows), torch.tensor(labels)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "norm"), [("contrastive", SUM, 0.5659072), ("multi_similarity", {}, 0.2777447)]
)
def test_the_gradient_reaches_anchors_and_candidates(name, options, norm):
    z = embeddings(E1[0])
    total(i_mix(loss(name, **options), at="embedding"), z, torch.tensor(E1[1])).backward()
    assert z.grad is not None
    assert z.grad.norm().item() == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 2], [1, 1, 1, 1], [0, 1, 2], [2]])
@pytest.mark.parametrize("name", loops.FORMULAS)
def test_equals_a_loop_over_formed_vectors(name, labels):
    wrapped, n = loss(name), len(labels)
    criterion = i_mix(wrapped, at="embedding")
    x = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z = loops.unit(x)
    partner, lam = drawn = criterion.draw(wrapped.batch(x, torch.tensor(labels)))
    assert (lam >= 0.5).all()
    vectors = loops.unit(wrapped.proxies.detach()) if wrapped.learns_classes else z
    expected = 0.0
    for i, j in enumerate(partner.tolist()):
        v = loops.unit(lam[i].item() * z[i] + (1 - lam[i].item()) * z[j])
        for share, label in ((lam[i].item(), labels[i]), (1 - lam[i].item(), labels[j])):
            of_candidates = range(3) if wrapped.learns_classes else labels
            kept = [k for k in range(len(vectors)) if wrapped.learns_classes or k not in (i, j)]
            labelled = [(vectors[k] @ v, float(of_candidates[k] == label)) for k in kept]
            expected += share * (loops.FORMULAS[name](labelled) or 0.0) / n
    if name == "soft_triple":
        expected += loops.soft_triple_regulariser(vectors)
    assert total(criterion, x, torch.tensor(labels), drawn).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["contrastive", "soft_triple"])
def test_with_a_weight_it_is_added_to_the_clean_loss(name):
    wrapped, z, labels = loss(name), embeddings(E1[0]), torch.tensor(E1[1])
    batch = wrapped.batch(z, labels)
    alone, added = (i_mix(wrapped, at="embedding", weight=w).total(batch, DRAWN) for w in (None, 0.25))
    mixed = alone - wrapped.regulariser(batch)
    assert added.item() == pytest.approx((wrapped.clean(batch) + 0.25 * mixed).item(), rel=1e-12)


def test_mining_acts_on_the_clean_term_only():
    z, labels = embeddings(E2[0]), torch.tensor(E2[1])
    plain, mining = (total(i_mix(loss("multi_similarity", mining=m), at="embedding"), z, labels) for m in (None, 0.0))
    assert torch.equal(plain, mining)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["contrastive", "circle", "lifted_structure", "supcon", "arcface"])
def test_finite_at_the_ends_of_the_range(name, dtype):
    """Equal and opposite embeddings, whose mix vanishes at λ = ½, and a fixed point."""
    z = torch.tensor([[1, 0], [-1, 0], [1, 0], [0, 1]], dtype=dtype, requires_grad=True)
    drawn = Drawn(torch.tensor([1, 2, 0, 3]), torch.full((4,), 0.5, dtype=dtype))
    for labels in ([0, 0, 1, 1], [0, 1, 2, 0], [1, 1, 1, 1]):
        value = total(i_mix(loss(name).to(dtype), at="embedding"), z, torch.tensor(labels), drawn)
        (gradient,) = torch.autograd.grad(value, z)
        assert value.isfinite()
        assert gradient.isfinite().all()


class Network(nn.Module):
    """A linear map of images, after layers with statistics and random numbers if wanted."""

    def __init__(self, *before: nn.Module):
        super().__init__()
        self.before, self.map = nn.Sequential(*before), nn.Linear(12, 2, bias=False)

    def forward(self, images):
        return self.map(self.before(images).flatten(1))


def images(network):
    """Images whose embeddings have length 1, so that mixing before and after the network is the same."""
    drawn = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return drawn / network(drawn).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("name", ["multi_similarity", "arcface"])
def test_mixed_images_of_a_linear_network_equal_mixed_embeddings(name, monkeypatch):
    network, labels = Network().double(), torch.tensor(E1[1])
    pixels, wrapped = images(network), loss(name)
    for rows in (256, 4):
        monkeypatch.setattr("metrix.network.ROWS", rows)
        inside, outside = i_mix(wrapped), i_mix(wrapped, at="embedding")
        expected = outside.objective(network, pixels, labels)
        assert inside.objective(network, pixels, labels).item() == pytest.approx(expected.item(), rel=1e-12)
        assert (inside.mixed_rows, outside.mixed_rows) == (6, 0)


def test_mixed_images_leave_no_trace_on_the_clean_batch():
    plain = Network(nn.BatchNorm2d(3), nn.Dropout(0.5)).double()
    mixed, pixels, labels = copy.deepcopy(plain), images(Network().double()), torch.tensor(E1[1])
    wrapped, values = loss("contrastive"), []
    for network, criterion in ((plain, wrapped), (mixed, i_mix(wrapped, weight=1e-30))):
        torch.manual_seed(5)
        values.append(
            (criterion.objective(network, pixels, labels), torch.random.get_rng_state(), *network.buffers())
        )
    for ours, theirs in zip(*values, strict=True):
        assert torch.equal(ours, theirs)


def test_outside_of_training_it_is_the_clean_loss():
    network, labels, wrapped = Network().double(), torch.tensor(E1[1]), loss("contrastive")
    pixels, criterion = images(network), i_mix(wrapped).eval()
    assert torch.equal(criterion.objective(network, pixels, labels), wrapped.objective(network, pixels, labels))
    assert torch.equal(criterion(network(pixels), labels), wrapped(network(pixels), labels))


def test_a_resumed_training_draws_the_same_numbers():
    z, labels = embeddings(E1[0]), torch.tensor(E1[1])
    criterion = i_mix(loss("contrastive"), at="embedding")
    criterion(z, labels)
    state = copy.deepcopy(criterion.state_dict())
    following = [criterion(z, labels) for _ in range(3)]
    other = i_mix(loss("contrastive"), at="embedding")
    other.load_state_dict(state)
    assert following == [other(z, labels) for _ in range(3)]


def test_warns_where_most_labels_have_no_positive():
    criterion = i_mix(loss("contrastive"), at="embedding")
    criterion(embeddings(E1[0]), torch.zeros(6).long())
    assert criterion.means() == {"share_with_positive": 1.0}
    assert criterion.warnings() == ()
    for _ in range(3):
        criterion(embeddings(E1[0]), torch.arange(6))
    assert criterion.means() == {"share_with_positive": 0.25}
    assert "25% of the labels of mixed examples" in criterion.warnings()[0]


def test_refuses_with_the_reason():
    network, labels = Network().double(), torch.tensor(E1[1])
    with pytest.raises(ValueError, match=r"mixes inside the network: call objective\(model, images, labels\)"):
        i_mix(loss("contrastive"))(embeddings(E1[0]), labels)
    with pytest.raises(TypeError, match=r"not torch\.uint8"):
        i_mix(loss("contrastive")).objective(network, torch.zeros(6, 3, 2, 2, dtype=torch.uint8), labels)
    with pytest.raises(ValueError, match="nothing is published"):
        i_mix(loss("contrastive"), at="feature")
    for name, reason in (("triplet", "no loss of a single anchor"), ("proxy_anchor", "proxies as anchors")):
        assert reason in (rivals.refusal("i_mix", name) or "")
