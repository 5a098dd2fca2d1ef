"""MoCHi: worked numbers, a loop over formed vectors, and which gradient synthetic negatives have."""

import copy
from typing import Any

import pytest
import torch

from metrix import rivals
from metrix.rivals.mochi import Drawn
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss

SUM: dict[str, Any] = {"reduction": "sum"}
PAIRS = ("contrastive", "multi_similarity", "lifted_structure", "binomial_deviance", "circle", "nca", "supcon")


def mochi(wrapped, **options):
    return rivals.create("mochi", wrapped, generator=torch.Generator().manual_seed(0), **options)


def worked(name, example, **options):
    """The objective of an example, with the nearest negative at ¼ and the second, and with the nearest at 0.4."""
    z, rank, ones = embeddings(example[0]), torch.zeros(6, 1).long(), torch.ones(6, 1, dtype=torch.float64)
    criterion = mochi(loss(name, **options), hardest=2, between=1, towards=1)
    drawn = Drawn(rank, rank + 1, 0.25 * ones, rank, 0.4 * ones)
    return criterion.total(criterion.loss.batch(z, torch.tensor(example[1])), drawn), z


@pytest.mark.parametrize(
    ("name", "options", "first", "second"),
    [
        ("contrastive", SUM, 0.041131488229, 0.338288924646),
        ("contrastive", {}, -0.515655865824, -0.021706092269),
        ("multi_similarity", {}, 0.162409824858, 0.588508261398),
        ("supcon", {}, 1.680378767402, 5.071920030546),
    ],
)
def test_worked_numbers(name, options, first, second):
    for example, expected in ((E1, first), (E2, second)):
        assert worked(name, example, **options)[0].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "norm"), [("contrastive", SUM, 1.1171063), ("multi_similarity", {}, 0.2593268)]
)
def test_synthetic_negatives_move_the_anchor_alone(name, options, norm):
    value, z = worked(name, E1, **options)
    value.backward()
    assert z.grad is not None
    assert z.grad.norm().item() == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("hardest", [1, 2, 16])
@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 2, 0, 1], [0, 1, 1, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_a_loop_over_formed_vectors(name, labels, hardest):
    """In the second batch seven anchors have one negative, which cannot be mixed with another."""
    criterion = mochi(loss(name), hardest=hardest, between=3)
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x[5] = x[3]
    z, batch = loops.unit(x), criterion.loss.batch(x, torch.tensor(labels))
    drawn = criterion.draw(batch)
    expected = 0.0
    for a in range(8):
        clean = [(z[a] @ z[k], float(labels[k] == labels[a])) for k in range(8) if k != a]
        negatives = sorted((k for k in range(8) if labels[k] != labels[a]), key=lambda k, a=a: (-z[a] @ z[k], k))
        near, vectors = z[negatives[:hardest]], []
        for k in range(3 if len(near) > 1 else 0):
            i, j = (int(ranks[a, k]) for ranks in (drawn.first, drawn.second))
            assert i != j
            vectors.append(drawn.alpha[a, k].item() * near[i] + (1 - drawn.alpha[a, k].item()) * near[j])
        for k in range(2):
            beta = drawn.beta[a, k].item()
            assert beta <= 0.5
            vectors.append(beta * z[a] + (1 - beta) * near[int(drawn.one[a, k])])
        labelled = clean + [(z[a] @ loops.unit(v), 0.0) for v in vectors]
        expected += (loops.FORMULAS[name](labelled) or 0.0) / 8
    assert criterion.total(batch, drawn).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_draws_all_pairs_of_the_hardest_equally_often():
    criterion = mochi(loss("contrastive"), hardest=3, between=3000)
    drawn = criterion.draw(criterion.loss.batch(torch.randn(6, 4), torch.tensor([0, 1, 1, 1, 1, 0])))
    pairs = drawn.first[0] * 3 + drawn.second[0]
    counts = pairs.bincount(minlength=9).view(3, 3)
    assert counts.diagonal().tolist() == [0, 0, 0]
    assert (counts + 500 * torch.eye(3) - 500).abs().max() < 5 * 21


@pytest.mark.parametrize("name", PAIRS)
def test_one_class_is_the_loss_to_the_bit(name):
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    wrapped, results = loss(name), []
    for criterion in (wrapped, mochi(wrapped)):
        z = x.clone().requires_grad_()
        value = criterion(z, torch.full((7,), 2))
        results.append((value, *torch.autograd.grad(value, z)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_finite_at_the_ends_of_the_range(name, dtype):
    """Equal and opposite embeddings, in classes, as singletons, and one row."""
    z = torch.tensor([[1, 0], [-1, 0], [1, 0], [0, 1], [0, -1]], dtype=dtype, requires_grad=True)
    for labels in ([0, 0, 1, 1, 2], [0, 1, 2, 3, 4], [1]):
        value = mochi(loss(name))(z[: len(labels)], torch.tensor(labels))
        (gradient,) = torch.autograd.grad(value, z)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_the_order_of_the_batch_does_not_matter():
    criterion, order = mochi(loss("multi_similarity")), [3, 0, 5, 1, 4, 2]
    z, labels = embeddings(E2[0]), torch.tensor(E2[1])
    drawn = criterion.draw(criterion.loss.batch(z, labels))
    there = criterion.total(criterion.loss.batch(z, labels), drawn)
    back = criterion.total(criterion.loss.batch(z[order], labels[order]), Drawn(*(each[order] for each in drawn)))
    assert there.item() == pytest.approx(back.item(), rel=1e-12)


def test_outside_of_training_it_is_the_clean_loss():
    z, labels, wrapped = embeddings(E1[0]), torch.tensor(E1[1]), loss("contrastive")
    assert torch.equal(mochi(wrapped).eval()(z, labels), wrapped(z, labels))


def test_a_resumed_training_draws_the_same_numbers():
    z, labels = embeddings(E1[0]), torch.tensor(E1[1])
    criterion = mochi(loss("contrastive"))
    criterion(z, labels)
    state = copy.deepcopy(criterion.state_dict())
    following = [criterion(z, labels) for _ in range(3)]
    other = mochi(loss("contrastive"))
    other.load_state_dict(state)
    assert following == [other(z, labels) for _ in range(3)]


def test_counts_what_it_made():
    criterion, z = mochi(loss("contrastive"), between=4), embeddings(E1[0])
    criterion(z, torch.zeros(6).long())
    assert "no synthetic negative was made" in criterion.warnings()[0]
    criterion(z, torch.tensor([0, 1, 1, 1, 1, 1]))  # one anchor with five negatives, five with one
    assert criterion.means() == pytest.approx({"synthetic_negatives": (6 + 5 * 2) / 6 / 2})
    assert criterion.warnings() == ()


def test_refuses_with_the_reason():
    assert "would choose among synthetic negatives" in (
        rivals.refusal("mochi", "multi_similarity", {"mining": 0.1}) or ""
    )
    with pytest.raises(ValueError, match="would choose among synthetic negatives"):
        mochi(loss("multi_similarity", mining=0.1))
    assert rivals.refusal("mochi", "multi_similarity") is None
    for name, reason in (("triplet", "no formula over one anchor"), ("arcface", "no negative examples to mix")):
        assert reason in (rivals.refusal("mochi", name) or "")
    with pytest.raises(ValueError, match=r"hardest = 0 .* at least 1"):
        mochi(loss("contrastive"), hardest=0)
