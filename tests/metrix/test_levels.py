"""The three levels through a small network: the clean batch and every other random stream stay as in the baseline."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import baselines
from metrix import Metrix, refusal
from metrix.pairs import PAIRS

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


class Network(nn.Module):
    """A small network with batch statistics and dropout that speaks the protocol of harness.Embedder."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 4))
        self.rows = []

    def stages(self):
        return ("first", "last")

    def forward(self, images):
        return self.forward_from("last", self.forward_to("last", images))

    def forward_to(self, stage, images):
        assert stage == "last"
        self.rows.append(len(images))
        return self.last(self.first(images))

    def forward_from(self, stage, maps):
        assert stage == "last"
        return nn.functional.normalize(self.head(maps.amax((2, 3))))

    def forward_joint(self, stage, images, mix):
        assert stage == "first"
        maps = self.first(images)
        self.rows.append(len(images))
        joint = self.last(torch.cat([maps, mix(maps)]))
        return self.forward_from("last", joint).split([len(images), len(joint) - len(images)])


def setting(**options):
    torch.manual_seed(0)
    network = Network(**options).double()
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    return network, images


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def step(criterion, network, images):
    """One step; everything a later step could notice."""
    torch.manual_seed(5)
    value = criterion.objective(network, images, LABELS)
    value.backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    return value.detach(), gradients, list(network.buffers()), torch.random.get_rng_state()


LEVELS: list[dict[str, Any]] = [
    {"at": "embedding"},
    {"at": "feature"},
    {"at": "feature", "stage": "first"},
    {"at": "input"},
]


@pytest.mark.parametrize("level", LEVELS)
def test_weight_zero_is_the_baseline_to_the_bit(level):
    network, images = setting()
    twin = copy.deepcopy(network)
    loss = baselines.create("multi_similarity")
    plain = step(loss, network, images)
    mixed = step(Metrix(loss, weight=0.0, **level), twin, images)
    assert torch.equal(plain[0], mixed[0])
    for ours, theirs in zip(plain[1] + plain[2], mixed[1] + mixed[2], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(plain[3], mixed[3])
    assert network.rows == twin.rows == [6]


@pytest.mark.parametrize("level", [level for level in LEVELS if "stage" not in level])
def test_mixing_leaves_no_trace_on_the_clean_batch(level):
    network, images = setting()
    twin = copy.deepcopy(network)
    loss = baselines.create("contrastive")
    plain = step(loss, network, images)
    criterion = Metrix(loss, weight=1e-12, **level)
    torch.manual_seed(5)
    terms = criterion.terms(twin, images, LABELS)
    assert torch.equal(plain[0], terms["clean"])
    assert terms["mixed"].item() != 0
    for ours, theirs in zip(plain[2], twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(plain[3], torch.random.get_rng_state())


def test_joint_pass_agrees_with_the_baseline_when_statistics_are_frozen():
    network, images = setting(dropout=0.0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    loss = baselines.create("contrastive")
    criterion = Metrix(loss, at="feature", stage="first")
    terms = criterion.terms(network, images, LABELS)
    assert terms["clean"].item() == pytest.approx(loss.objective(network, images, LABELS).item(), rel=1e-5)
    assert criterion.mixed_rows == 6


WITH_FORM = [name for name in baselines.names() if baselines.describe(name).metrix]


@pytest.mark.parametrize("lambda_per", ["batch", "example"])
@pytest.mark.parametrize("at", ["feature", "input"])
@pytest.mark.parametrize(
    ("name", "pairs"),
    [(name, pairs) for name in WITH_FORM for pairs in PAIRS if not refusal(name, "input", pairs=pairs)],
)
def test_linear_network_equals_the_embedding_level(name, at, pairs, lambda_per):
    """Through a linear map mixing commutes with the network, so one hardest partner means the same everywhere."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(12, 4, bias=False)

        def stages(self):
            return ("last",)

        def forward_to(self, stage, images):
            return images.flatten(1)

        def forward_from(self, stage, maps):
            return self.map(maps)

        def forward(self, images):
            return self.map(images.flatten(1))

    torch.manual_seed(3)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    model = Linear().double()
    images = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():  # unit embeddings, so that mixing before and after normalisation is the same
        images /= model(images).norm(dim=1)[:, None, None, None]
    loss = baselines.create(name, num_classes=4, dim=4, generator=generator()).double()
    options = {"pairs": pairs, "lambda_per": lambda_per, "max_mixed": 5}
    inside = Metrix(loss, at=at, generator=generator(1), **options)
    hardest = 1 if pairs in ("pos-neg", "anc-neg") else None
    outside = Metrix(loss, hardest=hardest, generator=generator(1), **options)
    expected = outside.terms(model(images), labels)["mixed"]
    assert inside.terms(model, images, labels)["mixed"].item() == pytest.approx(expected.item(), abs=1e-12)
    assert 0 < inside.mixed_rows <= 5


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("at", ["feature", "input"])
def test_many_mixed_rows_run_in_chunks_with_the_same_result(at, frozen, monkeypatch):
    """In chunks where rows do not see each other, at once where a BatchNorm takes statistics of all."""
    results = []
    for rows in (1000, 7):
        monkeypatch.setattr("metrix.network.ROWS", rows)
        network, images = setting(dropout=0.0)
        for module in network.modules():
            if frozen and isinstance(module, nn.BatchNorm2d):
                module.eval()
        criterion = Metrix(baselines.create("contrastive"), at=at, hardest=4, generator=generator(3))
        criterion.objective(network, images, LABELS).backward()
        assert criterion.mixed_rows == 24
        results.append([p.grad for p in network.parameters()] + list(network.buffers()))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_dropout_of_the_mixed_rows_is_the_same_when_recomputed(monkeypatch):
    monkeypatch.setattr("metrix.network.ROWS", 5)
    network, images = setting()
    network.eval()
    network.head[0].train()
    criterion = Metrix(baselines.create("contrastive", margin=-1.0, reduction="sum"), at="input", hardest=4)
    weight: Any = network.head[1].weight
    state = criterion.generator.get_state()

    def mixed(moved):
        with torch.no_grad():
            weight[0, 0] += moved
        criterion.generator.set_state(state)
        torch.manual_seed(1)
        return criterion.terms(network, images, LABELS)["mixed"]

    mixed(0.0).backward()
    slope = (mixed(1e-6) - mixed(-2e-6)) / 2e-6
    assert weight.grad[0, 0].item() == pytest.approx(slope.item(), rel=1e-6)


def test_refuses_layers_that_keep_other_statistics():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += len(x)
            return x

    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), Counter()).double()
    _, images = setting()
    with pytest.raises(RuntimeError, match=r"running statistics of the network: 2\.seen"):
        Metrix(baselines.create("contrastive"), at="input").objective(network, images, LABELS)


def test_effective_resolves_the_defaults():
    network, images = setting()
    loss = baselines.create("contrastive")
    both = ("pos-neg", "anc-neg")
    for options, expected in (
        ({}, (None, both, "all")),
        ({"at": "input"}, (None, both, 1)),
        ({"at": "feature"}, ("last", both, 1)),
        ({"at": "feature", "hardest": "all"}, ("last", both, "all")),
        ({"at": "feature", "stage": "first"}, ("first", both, "one at random")),
        ({"at": "feature", "pairs": "neg-neg"}, ("last", ("neg-neg",), "all")),
    ):
        settings: dict[str, Any] = options
        criterion = Metrix(loss, **settings)
        effective = criterion.effective(network)
        assert (effective["stage"], effective["pairs"], effective["hardest"]) == expected
        criterion.objective(network, images, LABELS)
        rows = {"all": 30 if "pairs" in options else 24, 1: 6, "one at random": 6}[expected[2]]
        assert criterion.mixed_rows == (0 if not options else rows)


def test_copies_draw_the_same_numbers():
    criterion = Metrix(baselines.create("contrastive"), generator=generator(4))
    z = torch.randn(6, 4)
    twin = copy.deepcopy(criterion)
    assert [criterion(z, LABELS) for _ in range(3)] == [twin(z, LABELS) for _ in range(3)]


def test_eval_mode_is_the_clean_loss():
    network, images = setting()
    loss = baselines.create("contrastive")
    for level in LEVELS:
        criterion = Metrix(loss, **level).eval()
        network.eval()
        assert torch.equal(criterion.objective(network, images, LABELS), loss.objective(network, images, LABELS))


def test_resumes_from_its_state():
    z = torch.randn(6, 4)
    criterion = Metrix(baselines.create("contrastive"), generator=generator(7))
    criterion(z, LABELS)
    state = criterion.state_dict()
    following = [criterion(z, LABELS) for _ in range(4)]
    other = Metrix(baselines.create("contrastive"))
    other.load_state_dict(state)
    assert following == [other(z, LABELS) for _ in range(4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at": "features"}, "'input', 'feature', 'embedding'"),
        ({"pairs": "pos-net"}, "'pos-neg'"),
        ({"weight": -0.1}, r"weight = -0.1 .* \[0.0, ∞\)"),
        ({"alpha": 0}, r"alpha = 0 .* \(0.0, ∞\)"),
        ({"hardest": 0}, "whole number"),
        ({"stage": "layer3"}, "belongs to at='feature'"),
        ({"pairs": "pos-pos", "hardest": 2}, "refuses it"),
    ],
)
def test_refuses_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        Metrix(baselines.create("contrastive"), **arguments)


def test_refuses_bad_networks_and_batches():
    network, images = setting()
    loss = baselines.create("contrastive")
    with pytest.raises(ValueError, match="no stage 'layer9' in this network; it has first, last"):
        Metrix(loss, at="feature", stage="layer9").objective(network, images, LABELS)
    with pytest.raises(ValueError, match="drawn at random"):
        Metrix(loss, at="feature", stage="first", hardest=2).objective(network, images, LABELS)
    with pytest.raises(TypeError, match=r"harness\.Embedder; Sequential has not"):
        Metrix(loss, at="feature").objective(nn.Sequential(network), images, LABELS)
    with pytest.raises(ValueError, match=r"holds one class \(label 4\)"):
        Metrix(loss, at="input").objective(network, images, torch.full((6,), 4))
    with pytest.raises(ValueError, match="mixes inside the network"):
        Metrix(loss, at="input")(images.flatten(1), LABELS)
    with pytest.raises(ValueError, match="indices_tuple"):
        Metrix(loss)(images.flatten(1), LABELS, (0, 1))
    with pytest.raises(ValueError, match="CrossEntropyLoss is not one of the losses"):
        Metrix(nn.CrossEntropyLoss())  # pyright: ignore[reportArgumentType]
