"""XBM: worked numbers, a loop over a list of remembered rows, resuming, and Metrix around it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from metrix import Metrix, refusal, rivals
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss
from tests.metrix.test_levels import LABELS, setting

SUM: dict[str, Any] = {"reduction": "sum"}
PAIRS = ("contrastive", "multi_similarity", "lifted_structure", "binomial_deviance", "circle", "nca", "supcon")


def xbm(wrapped, **options) -> Any:
    return rivals.create("xbm", wrapped, **{"size": 6, "warmup_steps": 0, **options})


def second_step(name, example, **options):
    """The objective of rows 2 to 5 of an example after a step with rows 0 to 3, and these rows."""
    criterion, labels = xbm(loss(name, **options)), torch.tensor(example[1])
    criterion(embeddings(example[0][:4]), labels[:4])
    z = embeddings(example[0][2:])
    return criterion(z, labels[2:]), z


@pytest.mark.parametrize(
    ("name", "options", "first", "second"),
    [
        ("contrastive", SUM, -2.125, -0.025),
        ("contrastive", {}, -4 / 3, -0.17),
        ("multi_similarity", {}, 0.093413303565, 0.556743902784),
        ("supcon", {}, 1.441046292932, 5.122634196433),
    ],
)
def test_worked_numbers(name, options, first, second):
    for example, expected in ((E1, first), (E2, second)):
        assert second_step(name, example, **options)[0].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "norm"), [("contrastive", SUM, 1.6635805), ("multi_similarity", {}, 0.8700093)]
)
def test_the_memory_has_no_gradient(name, options, norm):
    value, z = second_step(name, E1, **options)
    value.backward()
    assert z.grad is not None
    assert z.grad.norm().item() == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("at_once", [2**23, 20])
@pytest.mark.parametrize("size", [3, 7, 50])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_a_loop_over_a_list_of_rows(name, size, at_once, monkeypatch):
    """Batches of 4 over a ring of 7 wrap; a memory of 3 keeps the last rows of a batch."""
    monkeypatch.setattr("metrix.rivals.xbm.AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(3)
    criterion, memory = xbm(loss(name), size=size, weight=0.5, warmup_steps=1), []
    for step in range(5):
        x, labels = torch.randn(4, 3, dtype=torch.float64, generator=generator), [0, step % 2, 1, 0]
        x[3] = x[0]  # a duplicate of an anchor's own row, which stays
        z = loops.unit(x)
        expected = loops.clean(name, x.numpy(), labels)
        if step > 0:
            memory = [*memory, *((step, k, z[k], labels[k]) for k in range(4))][-size:]
            for a in range(4):
                others = [(v, y) for s, k, v, y in memory if (s, k) != (step, a)]
                labelled = [(z[a] @ v, float(y == labels[a])) for v, y in others]
                expected += 0.5 * (loops.FORMULAS[name](labelled) or 0.0) / 4 if labelled else 0.0
        assert criterion(x, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_order_within_a_batch_does_not_matter():
    criterion, other, order = xbm(loss("contrastive"), size=12), xbm(loss("contrastive"), size=12), [3, 0, 5, 1, 4, 2]
    for rows, classes in (E1, E2, E1):
        z, labels = embeddings(rows), torch.tensor(classes)
        assert criterion(z, labels).item() == pytest.approx(other(z[order], labels[order]).item(), rel=1e-12)


def steps(criterion, count, seed):
    """Values and gradients of some steps."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        z = torch.randn(4, 3, generator=generator).requires_grad_()
        value = criterion(z, torch.randint(3, (4,), generator=generator))
        yield value.detach(), *torch.autograd.grad(value, z)


@pytest.mark.parametrize("before", [1, 2, 3, 6])
def test_a_resumed_training_is_the_same_to_the_bit(before):
    """Before the end of the warm-up, with a part of the ring, and after it wrapped."""
    first, other = (xbm(loss("multi_similarity").float(), size=9, warmup_steps=2) for _ in range(2))
    list(steps(first, before, seed=0))
    list(steps(other, 4, seed=8))  # what it remembered until now is replaced
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    twin = copy.deepcopy(first)
    for whole, resumed, copied in zip(*(steps(each, 5, seed=1) for each in (first, other, twin)), strict=True):
        for ours, theirs, its in zip(whole, resumed, copied, strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(ours, its)
    for name, saved in first.state_dict().items():
        assert torch.equal(saved, other.state_dict()[name])


def test_a_memory_of_another_size_is_not_loaded():
    first = xbm(loss("contrastive"))
    list(steps(first, 1, seed=0))
    with pytest.raises(RuntimeError, match="size mismatch for rows"):
        xbm(loss("contrastive"), size=5).load_state_dict(first.state_dict())


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"warmup_steps": 3}])
def test_weight_zero_and_the_warmup_are_the_loss_to_the_bit(options):
    wrapped = loss("multi_similarity")
    for ours, theirs in zip(steps(xbm(wrapped, **options), 3, 0), steps(wrapped, 3, 0), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_warmup_ends():
    wrapped = loss("contrastive")
    for criterion, expected in ((xbm(wrapped, warmup_steps=2), [0, 0, 4, 6]), (xbm(wrapped, warmup_steps=2), [4, 6])):
        if len(expected) == 2:
            criterion.start()
        list(steps(criterion, len(expected), seed=0))
        assert criterion.means() == {"remembered_rows": sum(expected) / len(expected)}
        assert criterion.warnings() == ()
    criterion = xbm(wrapped, warmup_steps=3)
    list(steps(criterion, 3, seed=0))
    assert criterion.warnings()[0].startswith("the memory never started")


def test_options_for_a_training():
    kind = rivals.find("xbm")
    assert (
        kind.useless({"warmup_steps": 1000}, 800) == "xbm would never start: warmup_steps 1000 of 800 training steps"
    )
    assert kind.useless({}, 1001) is None
    assert kind.fitted({"size": 8192, "weight": 0.5}, 6000) == {"size": 6000, "weight": 0.5}
    assert kind.fitted({}, 60000) == {"size": 8192}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_finite_at_the_ends_of_the_range(name, dtype):
    """Equal and opposite embeddings, one class, singletons, and one row, whose memory is its own."""
    z = torch.tensor([[1, 0], [-1, 0], [1, 0], [0, 1], [0, -1]], dtype=dtype, requires_grad=True)
    for labels in ([0, 0, 1, 1, 2], [1, 1, 1, 1, 1], [0, 1, 2, 3, 4], [1]):
        criterion = xbm(loss(name))
        for _ in range(3):
            value = criterion(z[: len(labels)], torch.tensor(labels))
            (gradient,) = torch.autograd.grad(value, z)
            assert value.isfinite()
            assert gradient.isfinite().all()


def test_remembers_float32_under_autocast():
    criterion = xbm(loss("contrastive").float())
    with torch.autocast("cpu", torch.bfloat16):
        criterion(nn.Linear(3, 2)(torch.randn(4, 3)), torch.tensor([0, 0, 1, 1]))
    assert criterion.rows.dtype == torch.float32
    assert criterion.rows[:4].norm(dim=1) == pytest.approx(torch.ones(4), abs=1e-6)


def test_outside_of_training_it_is_the_clean_loss():
    wrapped = loss("contrastive")
    criterion = xbm(wrapped)
    list(steps(criterion, 2, seed=0))
    state = copy.deepcopy(criterion.state_dict())
    z, labels = embeddings(E1[0]), torch.tensor(E1[1])
    assert torch.equal(criterion.eval()(z, labels), wrapped(z, labels))
    assert all(torch.equal(saved, criterion.state_dict()[name]) for name, saved in state.items())


@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize("at", ["embedding", "feature", "input"])
@pytest.mark.parametrize("name", ["contrastive", "nca"])
def test_metrix_adds_its_own_term(name, at, weight):
    """ℓ + weight · ℓ_M + w · ℓ̃, with ℓ̃ and the random numbers as without the memory."""
    wrapped = loss(name)
    network, images = setting(dropout=0.0)
    plain = Metrix(wrapped, at, weight=weight, generator=torch.Generator().manual_seed(2))
    memory = xbm(wrapped, size=9)
    alone = copy.deepcopy(memory)
    both = Metrix(memory, at, weight=weight, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        batch = wrapped.batch(network(images), LABELS)
        without, terms = plain.terms(network, images, LABELS), both.terms(network, images, LABELS)
        assert torch.equal(terms["clean"], alone.clean(batch))
        assert terms["clean"] != without["clean"]
        assert terms.keys() == without.keys()
        assert all(torch.equal(terms[key], without[key]) for key in terms.keys() - {"clean"})
    assert both.means() == {"remembered_rows": (6 + 9 + 9) / 3}
    assert both.warnings() == ()
    state = copy.deepcopy(both.state_dict())
    other = Metrix(xbm(loss(name), size=9), at, weight=weight)
    other.load_state_dict(state)
    assert torch.equal(*(each.objective(network, images, LABELS) for each in (both, other)))


def test_metrix_looks_through_it():
    supcon, contrastive = (xbm(loss(name)) for name in ("supcon", "contrastive"))
    assert refusal(supcon) == refusal("supcon")
    assert refusal(contrastive) is None
    with pytest.raises(ValueError, match="supcon has no Metrix form"):
        Metrix(supcon)
    with pytest.raises(ValueError, match="MoCHi is not one of the losses"):
        Metrix(rivals.create("mochi", loss("contrastive")))
    with pytest.raises(AttributeError, match="no attribute 'formulas'"):
        _ = contrastive.formulas


def test_refuses_with_the_reason():
    for name, reason in (("triplet", "no formula over one anchor"), ("arcface", "remembered ones have no place")):
        assert reason in (rivals.refusal("xbm", name) or "")
    with pytest.raises(ValueError, match=r"size = 0 .* at least 1"):
        xbm(loss("contrastive"), size=0)
