"""Every loss on clean batches: against loops, finite differences, and what it refuses."""

import pytest
import torch

import baselines
from baselines.margin import Margin
from baselines.weights import Weights, log_mask
from tests.baselines import loops

WITH_LOOPS = tuple(sorted(loops.NAMES & set(baselines.names())))  # a loss that somebody adds has none
BATCHES = ([0, 0, 0, 1, 1, 1, 2, 2, 2], [4, 0, 0, 1, 0, 0, 1, 2], [1, 1, 1, 1], [0, 1, 2, 3], [2])


def create(name, **hyperparameters):
    generator = torch.Generator().manual_seed(1)
    return baselines.create(name, num_classes=5, dim=4, generator=generator, **hyperparameters).double()


def batch(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), 4, dtype=torch.float64, generator=generator), torch.tensor(labels)


@pytest.mark.parametrize("labels", BATCHES)
@pytest.mark.parametrize("name", WITH_LOOPS)
def test_equals_loops(name, labels):
    loss = create(name)
    embeddings, targets = batch(labels)
    proxies = loss.proxies.detach().numpy() if loss.learns_classes else None
    learned = {"beta": loss.beta.item()} if isinstance(loss, Margin) else {}
    expected = loops.clean(name, embeddings.numpy(), labels, proxies, **learned)
    assert loss(embeddings, targets).item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("contrastive", {"margin": 0.2, "reduction": "sum"}),
        ("triplet", {"mining": "semihard", "margin": 0.4}),
        ("triplet", {"mining": "hard"}),
        ("margin", {"margin": 0.5, "beta": 0.9}),
        ("circle", {"margin": 0.25, "gamma": 128.0}),
        ("smooth_ap", {"temperature": 0.1}),
        ("smooth_ap", {"include_query": True}),
        ("recall_at_k", {"temperature": 0.1, "k_temperature": 0.5}),
        ("recall_at_k", {"include_query": True}),
    ],
)
def test_equals_loops_with_other_hyperparameters(name, hyperparameters):
    loss = create(name, **hyperparameters)
    for labels in BATCHES:
        embeddings, targets = batch(labels, seed=1)
        if isinstance(loss, Margin):  # a learnable number is float32
            hyperparameters = {**hyperparameters, "beta": loss.beta.item()}
        expected = loops.clean(name, embeddings.numpy(), labels, **hyperparameters)
        assert loss(embeddings, targets).item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("name", baselines.names())
def test_a_second_derivative_is_refused_and_not_dropped(name):
    """Whatever else is in the objective: torch would silently drop the part of the loss."""
    loss = create(name)
    embeddings, labels = batch(BATCHES[1])
    value = loss(embeddings.requires_grad_(), labels) + embeddings.pow(3).sum()
    with pytest.raises(RuntimeError, match=r"^these losses have no second derivative: .* without create_graph=True$"):
        torch.autograd.grad(value, embeddings, create_graph=True)


@pytest.mark.parametrize("name", [name for name in baselines.names() if name != "circle"])
def test_gradient_equals_finite_differences(name):
    loss = create(name)
    for classes in BATCHES[1:3]:
        embeddings, labels = batch(classes)
        assert torch.autograd.gradcheck(lambda z: loss(z, labels), embeddings.requires_grad_())  # noqa: B023
    embeddings, labels = batch(BATCHES[2])
    for parameter in loss.parameters():
        assert parameter.grad is None
        loss(embeddings, labels).backward()
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_gradient_of_circle_takes_its_weights_as_constants():
    similarities = [0.9, 0.3, -0.2, 0.6]
    labels = [1.0, 1.0, 0.0, 0.0]
    s = torch.tensor([similarities], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([labels]) > 0
    baselines.create("circle").formula(
        s, *(Weights(log_mask(side, s.dtype), 1.0, s.shape) for side in (y, ~y))
    ).sum().backward()
    assert s.grad is not None
    for k in range(4):
        moved = [[t + (step if i == k else 0.0) for i, t in enumerate(similarities)] for step in (1e-6, -1e-6)]
        up, down = (loops.circle(list(zip(m, labels, strict=True)), weighted_at=similarities) for m in moved)
        assert s.grad[0, k].item() == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8)


def test_mining_keeps_the_hard_pairs():
    """Angles 0 10 90 | 50: for the anchor at 0 the farthest positive is at 90, the nearest negative at 50."""
    angles = torch.tensor([0.0, 10, 90, 50], dtype=torch.float64).deg2rad()
    embeddings, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 0, 1])
    loss = baselines.create("multi_similarity", mining=0.1)
    positive, negative = loss.labelled(loss.batch(embeddings, labels))
    assert positive.present[0].tolist() == [False, False, True, False]
    assert negative.present[0].tolist() == [False, False, False, True]


@pytest.mark.parametrize("name", baselines.names())
def test_takes_labels_of_any_integer_type(name):
    embeddings, labels = batch(BATCHES[1])
    loss = create(name)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(loss(embeddings, labels), loss(embeddings, labels.to(dtype)))


def test_margin_samples_one_negative_for_each_positive_pair():
    """Near negatives are rare on a sphere, so they are drawn more often; beyond 1.4 none is, if there are others."""
    loss = baselines.create("margin", sampling="distance", generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([0.0, 20, 40, 50, 70, 150], dtype=torch.float64).deg2rad()
    z = torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles], 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    positive, negative = loss.sides(loss.batch(z, labels))
    distances = (2 - 2 * z @ z.T).clamp(min=0).sqrt()
    assert isinstance(loss, Margin)
    counts = torch.stack([loss.sampled(distances, positive, negative, dim=8) for _ in range(500)]).sum(0)
    assert counts.sum(1).tolist() == [1000, 1000, 1000, 500, 500, 0]
    assert counts[0, 3] > counts[0, 4] > counts[0, 5] == 0
    assert (counts[~negative] == 0).all()
    chances = [(d**6 * (1 - d * d / 4) ** 2.5) ** -1 for d in distances[0, 3:5].tolist()]
    assert counts[0, 3].item() == pytest.approx(1000 * chances[0] / sum(chances), abs=5 * 16)


def test_margin_learns_one_boundary_for_each_class():
    embeddings, labels = batch(BATCHES[1])
    one, many = create("margin"), create("margin", boundaries="per_class")
    assert many.beta.shape == (5,)
    assert torch.equal(one(embeddings, labels), many(embeddings, labels))
    with pytest.raises(ValueError, match="names no class: num_classes=5"):
        many(embeddings, labels + 3)
    with pytest.raises(ValueError, match="needs num_classes"):
        baselines.create("margin", boundaries="per_class")


@pytest.mark.parametrize(
    ("embeddings", "labels", "error", "words"),
    [
        (torch.ones(3, 4), torch.tensor([0.0, 1.0, 1.0]), TypeError, "integers"),
        (torch.ones(3, 4), [0, 1, 1], TypeError, "tensor of integers"),
        (torch.ones(3, 4), torch.tensor([0, 1]), ValueError, "each of the 3 embeddings"),
        (torch.ones(3, 4, 1), torch.tensor([0, 1, 1]), TypeError, "floating-point tensor"),
        (torch.ones(3, 4).long(), torch.tensor([0, 1, 1]), TypeError, "floating-point tensor"),
        (torch.tensor([[1.0, float("nan")], [0, 1]]), torch.tensor([0, 1]), ValueError, r"1 of 2 .* rows \[0\]"),
        (torch.ones(0, 4), torch.ones(0).long(), ValueError, "empty"),
        (torch.ones(3, 4), torch.ones(3, device="meta").long(), ValueError, "labels are on meta"),
    ],
)
def test_refuses_bad_batches(embeddings, labels, error, words):
    with pytest.raises(error, match=words):
        baselines.create("contrastive")(embeddings, labels)


def test_refuses_what_does_not_fit_the_proxies():
    loss = create("proxy_anchor")
    with pytest.raises(ValueError, match="label 7 names no class: num_classes=5"):
        loss(torch.ones(2, 4), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"6 dimensions, but .* dim=4"):
        loss(torch.ones(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="indices_tuple"):
        loss(torch.ones(2, 4), torch.tensor([0, 1]), (1, 2, 3))
    with pytest.raises(ValueError, match="needs num_classes and dim"):
        baselines.create("proxy_anchor")


@pytest.mark.parametrize(
    ("name", "hyperparameters", "words"),
    [
        ("proxy_ancor", {}, "did you mean 'proxy_anchor'"),
        ("multi_similarity", {"betta": 1.0}, "no hyperparameter 'betta'; did you mean 'beta'"),
        ("multi_similarity", {"beta": -1.0}, r"beta = -1.0 is out of range.*\(0.0, ∞\)"),
        ("contrastive", {"margin": 2}, r"margin = 2 .* \[-1.0, 1.0\]"),
        ("contrastive", {"reduction": "avg"}, "'mean', 'sum'"),
    ],
)
def test_refuses_unknown_names_and_values(name, hyperparameters, words):
    with pytest.raises(ValueError, match=words):
        baselines.create(name, **hyperparameters)
