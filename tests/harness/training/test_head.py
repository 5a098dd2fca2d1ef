"""The head on a frozen backbone: how it mixes, and that it trains as it would with the backbone in the loop."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import baselines
import metrix
from harness.training.backbones import ModelError
from harness.training.bench import Bench
from harness.training.embedder import Wrapped
from harness.training.head import FrozenEmbedder, build_head, frozen_problem
from harness.training.network import augmentation, build_embedder, on_noise
from harness.training.pictures import Sources, images_of

ABOUT = {"width": 6, "weights": "w", "weights_read": None, "weights_digest": "d", "normalisation": {}}
LABELS = torch.arange(4).repeat_interleave(2)


def head(hidden=None, seed=0):
    return FrozenEmbedder(ABOUT, dim=5, hidden=hidden, generator=seed)


def layers(network) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def rows(seed=1):
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))


def test_a_head_is_linear_or_has_one_hidden_layer():
    assert (sum(p.numel() for p in build_head(6, 5).parameters())) == 6 * 5 + 5
    assert (sum(p.numel() for p in build_head(6, 5, 7).parameters())) == 6 * 7 + 7 + 7 * 5 + 5
    network, features = head(hidden=7), rows()
    first, last = layers(network)
    expected = F.relu(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(network(features), expected / expected.norm(dim=1, keepdim=True))


def test_equal_seeds_start_alike_and_torch_own_generator_is_unchanged():
    before = torch.get_rng_state()
    one, same, other = head(seed=3), head(seed=3), head(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one(rows()), same(rows()))
    assert not torch.equal(one(rows()), other(rows()))


@pytest.mark.parametrize("hidden", [None, 7])
def test_it_has_one_stage_at_which_features_are_mixed(hidden):
    network, features = head(hidden), rows()
    assert (network.stages(), network.share("pooled")) == (("pooled",), 1.0)
    assert network.mixes_like_embeddings() == (hidden is None)
    clean, mixed = network.forward_joint(-1, features, lambda rows: rows[:3] + 1)
    torch.testing.assert_close(clean, network(features))
    torch.testing.assert_close(mixed, network(features[:3] + 1))
    with pytest.raises(ModelError, match="a frozen backbone has one stage, 'pooled', not 'layer3'"):
        network.resolve_stage("layer3")


@pytest.mark.parametrize("hidden", [None, 7])
def test_metrix_at_the_features_mixes_them_by_hand(hidden, monkeypatch):
    """With λ = 0.3: every mixed row is one of 0.3 a positive and 0.7 a negative."""
    monkeypatch.setattr("metrix.pairs.draw_lambda", lambda *_: torch.tensor(0.3))
    network, features, seen = head(hidden), rows(), []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss = baselines.create("contrastive", num_classes=4, dim=5)
    criterion = metrix.Metrix(loss, at="feature", pairs="pos-neg", hardest="all", weight=1.0)
    terms = criterion.terms(network, features, LABELS)
    clean, mixed = seen
    assert torch.equal(clean, features)
    assert len(mixed) == criterion.mixed_rows > 0
    pairs = [(i, j) for i in range(8) for j in range(8) if LABELS[i] != LABELS[j]]
    by_hand = torch.stack([0.3 * features[i] + 0.7 * features[j] for i, j in pairs])
    nearest = torch.cdist(mixed, by_hand, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert nearest.values.max() < 1e-5
    assert len(nearest.indices.unique()) == len(mixed)
    if hidden is None:  # mixing before a linear head is mixing after it
        z = layers(network)[0](features)
        after = torch.stack([0.3 * z[i] + 0.7 * z[j] for i, j in pairs])[nearest.indices]
        torch.testing.assert_close(network(mixed), F.normalize(after, dim=1))
    assert terms["clean"].item() == pytest.approx(loss(network(features), LABELS).item())


def test_why_a_trial_cannot_freeze_its_backbone(frozen, make_trial):
    assert frozen_problem(make_trial("contrastive+input")) is None
    assert [frozen_problem(frozen(arm)) for arm in ("contrastive", "nca+embedding", "nca+feature", "pixels")] == [
        None
    ] * 4
    assert frozen_problem(frozen("nca+feature[stage=pooled]")) is None
    assert "one stage to mix at, 'pooled', not 'layer3'" in str(frozen_problem(frozen("nca+feature[stage=layer3]")))
    assert "mix at embedding or feature, or set model.backbone to trained" in str(frozen_problem(frozen("nca+input")))
    random = make_trial().model_copy(update={"model": frozen().model})
    assert "model.backbone is frozen, but test_resnet has no pretrained weights" in str(frozen_problem(random))


def test_noise_measures_a_frozen_trial_without_its_data(frozen):
    network, shape = on_noise(frozen())
    assert isinstance(network, FrozenEmbedder)
    assert shape == (build_embedder(frozen()).width,)
    assert network(torch.rand(2, *shape)).shape == (2, 16)


class InTheLoop(Wrapped):
    """A whole network that is always in evaluation mode, and of which only the head trains."""

    def forward(self, images):
        return self.model(images)

    def train(self, mode=True):
        self.training = mode
        self.model.eval()
        return self

    def freeze_backbone(self, frozen):
        self.model.freeze_backbone(True)


class TestCrops:
    """The transform that shows training what a test sees."""

    __test__ = False

    def __init__(self, augmentation):
        self.evaluate, self.augmentation = augmentation.evaluate, augmentation

    def load(self, batch, generator, each):
        return self.augmentation.load(batch, None, each)

    def train(self, batch, generator):
        return self.evaluate(batch)


def trained(bench, folder) -> torch.Tensor:
    """Train a bench; return the embeddings of all images."""
    folder.mkdir()
    for _ in bench.train(bench.criterion(), lambda: ({"MAP@R": 0.0}, {}), folder):
        pass
    return bench.embed(torch.arange(len(bench.dataset)))


@pytest.mark.parametrize("arm", ["contrastive", "proxy_anchor+embedding", "multi_similarity+feature"])
def test_it_trains_as_with_the_backbone_in_the_loop(arm, frozen, data, tmp_path):
    """Three epochs from the same weights, on the test crops: the embeddings agree, and moved far from their start."""
    trial, sources = frozen(arm, lr=1e-2), Sources(tmp_path, data)
    bench = Bench.of(trial, sources)
    start = bench.embed(torch.arange(len(bench.dataset)))
    whole = build_embedder(trial)
    whole.head.load_state_dict(bench.network.head.state_dict())
    images = images_of(trial, bench.dataset, sources)
    transform = TestCrops(augmentation(trial, whole, bench.dataset))
    loop = replace(bench, images=images, model=InTheLoop(whole), augmentation=transform)
    features, images = trained(bench, tmp_path / "a"), trained(loop, tmp_path / "b")
    torch.testing.assert_close(features, images, atol=1e-5, rtol=0)
    assert (features - start).norm(dim=1).mean() > 0.1
