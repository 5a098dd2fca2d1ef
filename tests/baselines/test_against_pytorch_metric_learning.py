"""The losses that pytorch-metric-learning has too, on a balanced batch: the same value and the same gradient."""

from typing import Any

import pytest
import torch

import baselines

pml = pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

CLASSES, EXAMPLES, DIM = 4, 3, 6


def inputs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(EXAMPLES)
    embeddings = torch.randn(len(labels), DIM, dtype=torch.float64, generator=generator)
    return embeddings + 0.5 * torch.eye(CLASSES, DIM, dtype=torch.float64)[labels], labels


def create(name, **hyperparameters):
    generator = torch.Generator().manual_seed(1)
    options = {"num_classes": CLASSES, "dim": DIM, "generator": generator}
    return baselines.create(name, **options, **hyperparameters).double()


def assert_equal(ours, theirs, scale=1.0, offset=0.0):
    results = []
    for loss in (ours, theirs):
        embeddings, labels = inputs()
        value = loss(embeddings.requires_grad_(), labels)
        value.backward()
        results.append((value, embeddings.grad))
    torch.testing.assert_close(results[0][0], results[1][0] * scale + offset, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1] * scale, rtol=1e-8, atol=1e-10)


COSINE = distances.CosineSimilarity()


@pytest.mark.parametrize(
    ("name", "hyperparameters", "theirs"),
    [
        ("multi_similarity", {}, lambda: losses.MultiSimilarityLoss(alpha=18, beta=75, base=0.77)),
        ("lifted_structure", {}, lambda: losses.GeneralizedLiftedStructureLoss(neg_margin=-1, distance=COSINE)),
        ("nca", {}, lambda: losses.NCALoss(softmax_scale=10, distance=COSINE)),
        ("triplet", {"margin": 0.3}, lambda: losses.TripletMarginLoss(margin=0.3, distance=COSINE)),
        ("circle", {}, lambda: losses.CircleLoss(m=0.4, gamma=80)),
        ("supcon", {}, lambda: losses.SupConLoss(temperature=0.1)),
    ],
)
def test_pairs(name, hyperparameters, theirs):
    assert_equal(create(name, **hyperparameters), theirs())


def test_contrastive_sum_up_to_a_constant():
    """Theirs is Σ [1 − s]₊ over the 24 positive pairs, ours Σ −s, and a mean over the 12 anchors."""
    margins: dict[str, Any] = {"pos_margin": 1, "neg_margin": 0.2}  # typed as int there
    theirs = losses.ContrastiveLoss(**margins, distance=COSINE, reducer=reducers.SumReducer())
    assert_equal(create("contrastive", margin=0.2, reduction="sum"), theirs, scale=1 / 12, offset=-24 / 12)


def test_mined_multi_similarity():
    miner = miners.MultiSimilarityMiner(epsilon=0.1)
    loss = losses.MultiSimilarityLoss(alpha=18, beta=75, base=0.77)
    assert_equal(
        create("multi_similarity", mining=0.1),
        lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels)),
    )


@pytest.mark.parametrize(
    ("name", "theirs", "transposed"),
    [
        ("proxy_anchor", lambda: losses.ProxyAnchorLoss(CLASSES, DIM, margin=0.1, alpha=32), False),
        ("proxy_nca_pp", lambda: losses.ProxyNCALoss(CLASSES, DIM, softmax_scale=9), False),
        ("norm_softmax", lambda: losses.NormalizedSoftmaxLoss(CLASSES, DIM, temperature=1 / 20), True),
        ("arcface", lambda: losses.ArcFaceLoss(CLASSES, DIM, margin=90 / torch.pi, scale=64), True),
        ("cosface", lambda: losses.CosFaceLoss(CLASSES, DIM, margin=0.35, scale=64), True),
        ("soft_triple", lambda: losses.SoftTripleLoss(CLASSES, DIM), True),
    ],
)
def test_learned_classes(name, theirs, transposed):
    ours, their = create(name, **({"tau": 0.0} if name == "soft_triple" else {})), theirs()
    (parameter,) = their.parameters()
    proxies = ours.proxies.detach().flatten(0, -2)
    parameter.data = proxies.T.clone() if transposed else proxies.clone()
    assert_equal(ours, their)
