"""Smooth-AP and recall@k: worked numbers, the gradient, other code, chunks, batches of virtual rows, and counts."""

import pytest
import torch

import baselines
from baselines import chunks
from baselines.form import Batch
from tests.metrix.rivals import examples

NAMES = ("smooth_ap", "recall_at_k")
INCLUDED, WARM = {"include_query": True}, {"temperature": 0.1}


def batch(labels):
    x = torch.randn(len(labels), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.requires_grad_(), torch.tensor(labels)


def computed(loss, x, labels):
    """The value and the gradient."""
    value = loss(x, labels)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize(
    ("name", "hyperparameters", "of_e1", "of_e2", "norm"),
    [
        ("smooth_ap", {}, 0.277777769068, 0.410714283480, None),
        ("smooth_ap", INCLUDED, 0.091833622344, 0.181157650417, None),
        ("smooth_ap", WARM, 0.301551150823, 0.413382480199, 0.6672855),
        ("recall_at_k", {}, 0.220921261234, 0.296590424507, None),
        ("recall_at_k", INCLUDED, 0.336197764678, 0.406986131024, None),
        ("recall_at_k", WARM, 0.223737218838, 0.293096624860, 0.1968367),
    ],
)
def test_worked_numbers(name, hyperparameters, of_e1, of_e2, norm):
    loss = examples.loss(name, **hyperparameters)
    for (rows, labels), expected in ((examples.E1, of_e1), (examples.E2, of_e2)):
        assert loss(examples.embeddings(rows), torch.tensor(labels)).item() == pytest.approx(expected, abs=1e-9)
    if norm is not None:
        _, gradient = computed(loss, examples.embeddings(examples.E1[0]), torch.tensor(examples.E1[1]))
        assert gradient.norm().item() == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize(("hyperparameters", "expected"), [({}, 0.0991), (INCLUDED, 0.3004)])
def test_a_perfect_ranking_has_a_recall_loss_above_zero(hyperparameters, expected):
    labels = torch.arange(20).repeat_interleave(5)
    chance = torch.rand(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    similarities = ((labels[:, None] == labels) + chance).fill_diagonal_(3)
    loss = baselines.create("recall_at_k", temperature=1e-9, **hyperparameters)
    assert loss.clean(Batch(torch.ones(100, 1), labels, similarities)).item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("hyperparameters", "of_e1", "of_e2"),
    [
        ({}, 0.200675364448, 0.362202196219),
        ({**WARM, **INCLUDED}, 0.328513559101, 0.482046800326),
    ],
)
def test_a_batch_may_hold_virtual_rows(hyperparameters, of_e1, of_e2):
    """A Batch with more rows than embeddings: k stays at most the clean rows, s(v, v) of a mixed row is not 1."""
    mixed = {
        of_e1: (examples.E1, ((0, 1, 0.25), (2, 3, 0.5), (4, 5, 0.75))),
        of_e2: (examples.E2, ((0, 1, 0.25), (0, 2, 0.5), (1, 2, 0.75), (3, 4, 0.25))),
    }
    loss = examples.loss("recall_at_k", **hyperparameters)
    for expected, ((rows, labels), pairs) in mixed.items():
        z = torch.tensor(rows, dtype=torch.float64)
        virtual = torch.stack([lam * z[i] + (1 - lam) * z[j] for i, j, lam in pairs])
        everyone = torch.cat([z, virtual])
        labels = torch.tensor([*labels, *(labels[i] for i, _, _ in pairs)])
        assert loss.clean(Batch(z, labels, everyone @ everyone.T)).item() == pytest.approx(expected, abs=1e-9)


def test_smooth_ap_equals_pytorch_metric_learning():
    """Where it equals the authors' code: three classes of three, in consecutive rows."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    labels = torch.arange(3).repeat_interleave(3)
    results = []
    for loss in (baselines.create("smooth_ap", include_query=True), losses.SmoothAPLoss()):
        x = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        results.append(computed(loss, x, labels))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6, check_dtype=False)  # theirs is float32 inside


MIXED_SIZES = [4, 0, 0, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("hyperparameters", [{}, INCLUDED])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_does_not_matter(name, hyperparameters):
    loss, (x, labels) = baselines.create(name, **hyperparameters), batch(MIXED_SIZES)
    order = torch.tensor([3, 7, 1, 0, 6, 2, 5, 4])
    assert loss(x[order], 9 - labels[order]).item() == pytest.approx(loss(x, labels).item(), abs=1e-12)


@pytest.mark.parametrize("hyperparameters", [{}, INCLUDED])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(name, hyperparameters, monkeypatch):
    loss, results = baselines.create(name, **hyperparameters), []
    for numbers in (chunks.CHUNK, 60, 1):  # all anchors at once, two, and one
        monkeypatch.setattr(chunks, "CHUNK", numbers)
        results.append(computed(loss, *batch(MIXED_SIZES)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hyperparameters", [{}, INCLUDED, {"temperature": 0.002}])
@pytest.mark.parametrize("name", NAMES)
def test_finite_for_degenerate_batches(name, hyperparameters, dtype):
    axis = torch.eye(4, dtype=dtype)[:1]
    for rows, labels in (
        (axis, [3]),
        (axis.repeat(4, 1), [0, 0, 1, 1]),  # duplicates
        (torch.cat([axis, -axis, axis, -axis]), [0, 0, 1, 1]),  # opposite rows
        (torch.eye(4, dtype=dtype), [0, 1, 2, 3]),  # singletons
        (torch.eye(4, dtype=dtype), [0, 0, 0, 0]),  # one class
    ):
        x = rows.clone().requires_grad_()
        value, gradient = computed(baselines.create(name, **hyperparameters), x, torch.tensor(labels))
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("name", "labels"),
    [("smooth_ap", [0, 1, 2, 3]), ("recall_at_k", [0, 1, 2, 3]), ("smooth_ap", [0, 0, 0, 0])],
)
def test_batches_without_anything_to_rank_give_nothing(name, labels):
    """Neither singletons nor, in smooth_ap, one class."""
    value, gradient = computed(baselines.create(name), *batch(labels))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_good_ranking_keeps_its_digits(name):
    """Classes around the axes, whose loss in smooth_ap is 5e-18: in float32 the gradient is no noise."""
    labels = torch.arange(4).repeat_interleave(4)
    x = torch.eye(4, dtype=torch.float64)[labels] + 0.15 * batch(labels.tolist())[0].detach()
    single, double = (
        computed(baselines.create(name), x.to(dtype).requires_grad_(), labels)
        for dtype in (torch.float32, torch.float64)
    )
    for found, expected in zip(single, double, strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_warns_where_few_examples_have_a_positive(name):
    loss = baselines.create(name)
    assert loss.warnings() == ()
    loss(*batch([0, 0, 0, 1, 2, 3]))
    assert loss.means() == {"anchors_with_positive": 0.5}
    assert loss.warnings() == ()
    loss.eval()(*batch([0, 1, 2, 3]))  # counts training steps only
    assert loss.warnings() == ()
    loss.train()(*batch([0, 1, 2, 3]))
    (sentence,) = loss.warnings()
    assert sentence.startswith("only 25% of the examples had another one of their class in the batch; ")


@pytest.mark.parametrize(
    ("name", "hyperparameters", "words"),
    [
        ("smooth_ap", {"temperature": 0}, "temperature = 0 is out of range"),
        ("smooth_ap", {"include_query": "yes"}, "include_query = 'yes' is unknown"),
        ("recall_at_k", {"k_temperature": -1}, "k_temperature = -1 is out of range"),
        ("recall_at_k", {"largest_k": 10}, "largest_k = 10 is unknown; it must be one of 1, 2, 4, 8, 16"),
    ],
)
def test_refuses_values_out_of_range(name, hyperparameters, words):
    with pytest.raises(ValueError, match=words):
        baselines.create(name, **hyperparameters)


@pytest.mark.parametrize("name", NAMES)
def test_metrix_is_refused_with_the_reason(name):
    assert "a count over all candidates" in baselines.describe(name).why_no_metrix
