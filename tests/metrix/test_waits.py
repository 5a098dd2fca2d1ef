"""No training step asks the device for a value, whatever the loss and the level."""

import copy
from typing import Any

import pytest
import torch

import baselines
from baselines.form import NotFinite
from metrix import Metrix, refusal, rivals
from tests.metrix.test_levels import Network
from tests.waits import DEVICE, counted

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 4])
LEVELS: dict[str, dict[str, Any]] = {
    "embedding": {"at": "embedding"},
    "embedding, hardest": {"at": "embedding", "hardest": 2, "max_mixed": 9, "lambda_per": "example"},
    "feature": {"at": "feature", "lambda_per": "example"},
    "feature, first": {"at": "feature", "stage": "first", "lambda_per": "example", "max_mixed": 5},
    "input": {"at": "input", "max_mixed": 5},
}
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "triplet": ({"mining": "hard"}, {"mining": "semihard"}),
    "margin": ({"boundaries": "per_class"}, {"sampling": "distance"}),
    "multi_similarity": ({"mining": 0.1},),
    "smooth_ap": ({"include_query": True},),
    "recall_at_k": ({"include_query": True},),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss(name, **options):
    return baselines.create(name, num_classes=5, dim=4, generator=generator(), **options)


def arms():
    for name in baselines.names():
        for options in ({}, *OPTIONS.get(name, ())):
            yield name, options, None, {}
        for pairs in ("pos-neg", "anc-neg", "pos-pos", "neg-neg"):
            for level, options in LEVELS.items():
                if refusal(name, pairs=pairs, **{k: v for k, v in options.items() if k != "stage"}) is None:
                    yield name, {}, level, {"pairs": pairs, **options}
        for rival in rivals.names():
            if rivals.refusal(rival, name) is None:
                yield name, {}, rival, {}
    yield "proxy_anchor", {}, "embedding", {"at": "embedding", "renormalize": False}
    yield "contrastive", {}, "i_mix", {"at": "embedding"}
    yield "contrastive", {}, "xbm", {"warmup_steps": 0}


def criterion(name, options, level, settings) -> Any:
    inner = loss(name, **options)
    if level is None:
        return inner
    if level in rivals.names():
        made = rivals.create(level, inner, generator=generator(1), **settings)
        made.start()
        return made
    return Metrix(inner, generator=generator(1), **settings)


def step(objective, network, images, labels):
    """Train on a batch; return the loss and what it leads to."""
    torch.manual_seed(5)
    parameters = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, fused=False, foreach=False)
    value = objective.objective(network, images, labels)
    value.backward()
    torch.nn.utils.clip_grad_value_(parameters, 1.0)
    optimizer.step()
    return [value.detach(), *(p.detach() for p in parameters)]


ARMS = list(arms())
CASES = [(arm, chunk) for arm in ARMS for chunk in (2**18, 7) if chunk > 7 or arm[3].get("at") in (None, "embedding")]


@pytest.mark.parametrize(("arm", "chunk"), CASES, ids=str)
def test_a_step_asks_the_device_for_nothing_and_computes_what_the_cpu_does(arm, chunk, monkeypatch):
    monkeypatch.setattr("baselines.chunks.CHUNK", chunk)
    torch.manual_seed(0)
    network, images = Network(dropout=0.0), torch.randn(len(LABELS), 3, 8, 8)
    expected = step(criterion(*arm), copy.deepcopy(network), images, LABELS)
    with counted() as waits:
        objective = criterion(*arm).to(DEVICE)
        network, images = network.to(DEVICE), images.to(DEVICE)
        waits.clear()
        got = step(objective, network, images, LABELS)
    assert not waits, dict(waits)
    for ours, there in zip(expected, got, strict=True):
        assert torch.equal(ours, there.numbers)


@pytest.mark.parametrize("name", baselines.names())
def test_labels_on_the_device_are_asked_for_once(name):
    embeddings = torch.randn(len(LABELS), 4, generator=generator())
    with counted() as waits:
        objective, there, labels = loss(name).to(DEVICE), embeddings.to(DEVICE), LABELS.to(DEVICE)
        waits.clear()
        value = objective(there, labels)
    assert sum(waits.values()) == 1, dict(waits)
    assert torch.equal(value.numbers, loss(name)(embeddings, LABELS))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize(("name", "options"), [arm[:2] for arm in arms() if arm[2] is None])
def test_embeddings_that_are_not_finite_make_the_loss_nan_where_a_check_would_wait(name, options, wrong):
    """1e30 is finite, but too long for float32."""
    embeddings = torch.randn(len(LABELS), 4, generator=generator())
    embeddings[3, 1] = wrong
    with pytest.raises(NotFinite, match=r"1 of 8 .* rows \[3\]"):
        loss(name, **options)(embeddings, LABELS)
    with counted():
        value = loss(name, **options).to(DEVICE)(embeddings.to(DEVICE), LABELS)
    assert value.numbers.isnan()
