"""What holds for every loss that the folder registers, and how one more is added."""

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import baselines
from baselines.description import of_class, of_source
from metrix import Metrix, refusal
from tests.baselines import loops

NAMES = baselines.names()
SIZES: dict[str, Any] = {"num_classes": 5, "dim": 4}


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def batch(dtype=torch.float32):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 4])
    return torch.randn(8, 4, dtype=dtype, generator=generator(0)), labels


def extremes():
    """Every loss at the defaults, and with each hyperparameter at both ends of its search space."""
    for name in NAMES:
        yield name, {}
        for parameter, space in baselines.describe(name).search_space.items():
            for value in space.get("choices") or (space["low"], space["high"]):
                yield name, {parameter: value}


def test_has_the_published_losses():
    assert set(NAMES) >= {
        "arcface", "binomial_deviance", "circle", "contrastive", "cosface", "lifted_structure", "margin",
        "multi_similarity", "nca", "norm_softmax", "proxy_anchor", "proxy_nca", "proxy_nca_pp", "recall_at_k",
        "smooth_ap", "soft_triple", "supcon", "triplet",
    }  # fmt: skip


def test_the_published_losses_name_the_year_and_have_loops():
    for name in loops.NAMES:
        about = baselines.describe(name)
        assert about.paper.endswith(str(about.year))
    assert len(loops.NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_its_source_says_the_same_as_its_class(name):
    path = Path(baselines.__file__).with_name(f"{name}.py")
    assert of_source(name, path) == of_class(name, baselines.find(name)) == baselines.describe(name)


@pytest.mark.parametrize(
    "body",
    [
        "title, paper, year = 'T', 'P', 2000",  # a tuple of names
        "title = NAME; paper = 'P'; year = 2000",  # no literal
        "title = 'T'; paper = 'P'; year = 2000\n    if True:\n        mixed = None",
        "title = 'T'; paper = 'P'; year = 2000; __init__ = other",
    ],
)
def test_a_source_that_is_not_plain_is_left_to_the_class(body, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"class Own(Loss):\n    {body}\n")
    assert of_source("own", path) is None
    for parameters in ("beta", "*, beta=2.0", "**options", "beta=other()"):
        stated = "title = 'T'; paper = 'P'; year = 2000"
        path.write_text(f"class Own(Loss):\n    {stated}\n    def __init__(self, {parameters}): pass\n")
        assert of_source("own", path) is None


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself(name):
    about = baselines.describe(name)
    loss = baselines.create(name, **SIZES)
    assert about.title
    assert about.paper
    assert 1900 < about.year < 2100
    assert about.metrix != bool(about.why_no_metrix)
    assert set(about.search_space) <= set(about.parameters)
    assert set(about.learnable) == {name for name, _ in loss.named_parameters()}
    assert (refusal(name) is None) == about.metrix
    multipliers = {"proxies": 100, "beta": 1}
    groups = loss.parameter_groups(lr=0.5)
    assert [g["lr"] for g in groups] == [0.5 * multipliers[n] for n in about.learnable]
    assert [g["params"] for g in groups] == [[p] for p in loss.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_draws_from_its_generator_alone(name):
    before = torch.random.get_rng_state()
    first, again, other = (baselines.create(name, **SIZES, generator=generator(seed)) for seed in (3, 3, 4))
    baselines.create(name, **SIZES)
    first(*batch())
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.numel() == 1 or not torch.equal(a, c)


@pytest.mark.parametrize("name", NAMES)
def test_state_makes_two_losses_equal(name):
    first, second = (baselines.create(name, **SIZES, generator=generator(seed)) for seed in (3, 4))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*batch()), second(*batch()))


@pytest.mark.parametrize(("name", "hyperparameters"), list(extremes()))
def test_single_precision_equals_double(name, hyperparameters):
    """Within 1e-5 of max(1, |loss|) at both ends of the range of every hyperparameter, clean and mixed."""
    loss = baselines.create(name, **SIZES, generator=generator(), **hyperparameters)
    embeddings, labels = batch(torch.float64)
    embeddings[1] = embeddings[0]

    def values(x):
        result = [loss(x, labels)]
        if refusal(loss) is None:
            criterion = Metrix(loss)
            result += [criterion.mixed_loss(x, labels, pairs=p, lam=0.4) for p in ("pos-neg", "anc-neg")]
        return torch.stack(result).double()

    single, double = values(embeddings.float()), values(embeddings)
    assert ((single - double).abs() <= 1e-5 * double.abs().clamp(min=1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    loss = baselines.create(name, **SIZES, generator=generator())
    embeddings, labels = batch()
    results = []
    for enabled in (False, True):
        x = embeddings.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(x, labels)
            value.backward()
        results.append((value, x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert loss(embeddings.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_the_ends_of_the_range(name, dtype):
    """Similarities of exactly 1 and −1, an embedding on its proxy, a zero vector."""
    loss = baselines.create(name, **SIZES, generator=generator())
    if loss.learns_classes:
        loss.proxies.data.zero_()
        loss.proxies.data[..., 0] = 1.0
    axis = torch.eye(4, dtype=dtype)
    embeddings = torch.cat([axis[:2], axis[:2], -axis[:2], 0 * axis[:1]]).requires_grad_()
    value = loss(embeddings, torch.tensor([0, 1, 0, 2, 0, 1, 2]))
    value.backward()
    assert value.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


def test_a_loss_is_added_by_one_file(tmp_path, monkeypatch):
    (tmp_path / "exponential.py").write_text(
        textwrap.dedent(
            '''
            """Exponential loss: Σ_p e^{−βs} + Σ_n e^{βs}."""

            from baselines.form import Loss, within


            class Exponential(Loss):
                title, paper, year = "Exponential", "nobody 2026", 2026

                def __init__(self, beta: float = 2.0):
                    super().__init__()
                    self.beta = within("beta", beta, above=0.0)

                def formula(self, similarities, positive, negative):
                    exponents = self.beta * similarities
                    return positive.sum((-exponents).exp()) + negative.sum(exponents.exp())
            '''
        )
    )
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "baselines.exponential", raising=False)
    assert "exponential" in baselines.names()
    loss = baselines.create("exponential", beta=1.0)
    z, labels = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])  # one negative each, similarity 0
    assert loss(z, labels).item() == pytest.approx(1.0)
    assert Metrix(loss).mixed_loss(torch.cat([z, z]), torch.tensor([0, 1, 0, 1]), pairs="pos-neg", lam=0.5) > 0
    with pytest.raises(ValueError, match="beta = 0"):
        baselines.create("exponential", beta=0)
