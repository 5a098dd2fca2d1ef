"""MemVir: numbers worked by hand, loops over a list of states, resuming, and batches of several sizes."""

import copy
import math
from typing import Any

import pytest
import torch

import baselines
from metrix import rivals
from tests.baselines import loops
from tests.metrix.rivals.examples import E1, E2, embeddings, loss

TAKEN = [name for name in baselines.names() if rivals.refusal("memvir", name) is None]
OTHER_VECTORS = [[1, 0], [3 / 5, 4 / 5], [-4 / 5, 3 / 5]]  # of the first step


def memvir(of_loss, **options) -> Any:
    return rivals.create("memvir", of_loss, **{"num_steps": 1, "gap": 1, "warmup_steps": 0, **options})


def third_step(name, rows_of_second):
    """The objective, the embeddings and the class vectors of a third step with E1, after two with other states."""
    criterion = memvir(loss(name))
    vectors = criterion.loss.proxies
    own = vectors.data.clone()
    vectors.data = torch.tensor(OTHER_VECTORS, dtype=torch.float64)
    criterion(embeddings(E2[0]), torch.tensor(E2[1]))
    vectors.data = own
    criterion(embeddings(E2[0][:rows_of_second]), torch.tensor(E2[1][:rows_of_second]))
    z = embeddings(E1[0])
    return criterion(z, torch.tensor(E1[1])), z, vectors


@pytest.mark.parametrize(("name", "expected"), [("norm_softmax", 5.867583873540), ("proxy_anchor", 38.215028264728)])
def test_worked_numbers(name, expected):
    assert third_step(name, 3)[0].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "norms"), [("norm_softmax", (2.0169313, 3.4704254)), ("proxy_anchor", (0.7744010, 3.4869586))]
)
def test_states_have_no_gradient(name, norms):
    value, *leaves = third_step(name, 6)
    gradients = torch.autograd.grad(value, leaves)
    assert [each.norm().item() for each in gradients] == pytest.approx(norms, abs=1e-6)


def create(name):
    options = {"centres": 3} if name == "soft_triple" else {}
    generator = torch.Generator().manual_seed(1)
    return baselines.create(name, num_classes=5, dim=4, generator=generator, **options).double()


@pytest.mark.parametrize(("num_steps", "gap", "warmup"), [(1, 0, 0), (2, 1, 1), (3, 0, 2), (2, 2, 0)])
@pytest.mark.parametrize("name", [name for name in TAKEN if name in loops.NAMES])
def test_equals_loops_over_a_list_of_states(name, num_steps, gap, warmup):
    """Batches of five, three and four rows wrap around the slots; class vectors move between steps."""
    criterion, states = memvir(create(name), num_steps=num_steps, gap=gap, warmup_steps=warmup), []
    generator = torch.Generator().manual_seed(3)
    for step in range(12):
        criterion.loss.proxies.data += torch.randn(
            criterion.loss.proxies.shape, generator=generator, dtype=torch.float64
        )
        size = (5, 3, 4)[step % 3]
        x = torch.randn(size, 4, dtype=torch.float64, generator=generator)
        labels = torch.randint(5, (size,), generator=generator)
        vectors = criterion.loss.proxies.detach().clone()
        used = [states[step - k * (gap + 1)] for k in range(1, num_steps + 1) if step - k * (gap + 1) >= warmup]
        states.append((x, labels, vectors))
        everyone = [states[-1], *used]
        rows = torch.cat([each[0] for each in everyone])
        their = torch.cat([each[1] + 5 * k for k, each in enumerate(everyone)])
        together = torch.cat([each[2] for each in everyone])
        expected = loops.clean(name, rows.numpy(), their.tolist(), together.numpy())
        if name == "soft_triple":
            regularised = [loops.soft_triple_regulariser(loops.unit(w)) for w in (vectors, together)]
            expected += regularised[0] - regularised[1]
        assert criterion(x, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-9), step


@pytest.mark.parametrize("name", TAKEN)
def test_until_a_state_is_old_enough_it_is_the_loss_bit_for_bit(name):
    criterion, labels = memvir(create(name), gap=2, warmup_steps=2), torch.tensor([0, 1, 2, 0])
    z = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = [criterion(z, labels).item() for _ in range(6)]
    clean = create(name)(z, labels).item()
    assert values[:5] == [clean] * 5
    assert values[5] != clean
    assert memvir(create(name)).eval()(z, labels).item() == clean


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_resumed_training_goes_on_in_the_same_bits(after):
    whole, labels = memvir(create("norm_softmax"), num_steps=2), torch.tensor([0, 1, 2, 0])
    batches = torch.randn(8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [whole(z, labels).item() for z in batches]
    first = memvir(create("norm_softmax"), num_steps=2)
    for z in batches[:after]:
        first(z, labels)
    second = memvir(create("norm_softmax"), num_steps=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [second(z, labels).item() for z in batches[after:]] == expected[after:]


def test_it_says_when_it_never_starts_and_what_it_keeps():
    kind = rivals.find("memvir")
    assert kind.useless({"warmup_steps": 10, "gap": 4}, 16) is None  # the 16th step uses the 11th
    assert kind.useless({"warmup_steps": 10, "gap": 4}, 15) == (
        "memvir would never start: warmup_steps 10 and gap 4 of 15 training steps"
    )
    criterion = memvir(create("proxy_anchor"), gap=3)
    z, labels = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([0, 1])
    criterion(z, labels)
    assert criterion.means() == {"states_used": 0.0}
    assert criterion.warnings() == (
        "no virtual class was used: the tested weights are from before the first old state, at step 5, so nothing "
        "but the loss trained them",
    )
    assert (criterion.rows.shape, criterion.vectors.shape) == ((4, 2, 4), (4, 5, 4))
    for _ in range(5):
        criterion(z, labels)
    assert criterion.means() == {"states_used": pytest.approx(2 / 6)}
    assert criterion.warnings() == ()


def test_what_it_keeps_is_known_before_it_starts():
    """The figure of the paper's settings on SOP, in 512 dimensions: 11.6 GB."""
    criterion = memvir(baselines.create("norm_softmax", num_classes=11_318, dim=512), num_steps=45, gap=10)
    assert criterion.kept_bytes(100, 512) == 4 * 45 * 11 * (100 + 11_318) * 512
    assert criterion.kept_bytes(100, 512) / 1e9 == pytest.approx(11.6, abs=0.05)


def test_a_started_one_has_the_size_of_a_whole_step():
    criterion = memvir(create("norm_softmax"), num_steps=3, gap=2, warmup_steps=50)
    criterion.start()
    value = criterion(torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3]))
    assert math.isfinite(value.item())
    assert criterion.means() == {"states_used": 3.0}
