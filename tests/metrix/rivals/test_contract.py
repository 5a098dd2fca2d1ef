"""What holds for every rival that the folder registers, with every loss that it takes."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import baselines
from baselines.description import stated_in
from metrix import rivals
from tests.metrix.test_levels import LABELS, generator, setting, step

NAMES = rivals.names()
TAKEN = [(name, loss) for name in NAMES for loss in baselines.names() if rivals.refusal(name, loss) is None]
FIRST_TAKEN = [next(pair for pair in TAKEN if pair[0] == name) for name in NAMES]
CLASSES, DIM = 5, 6
DTYPES = (torch.float32, torch.float64)
BATCHES = {
    "usual": [0, 0, 1, 1, 2, 2, 2, 4],
    "one class": [1, 1, 1, 1],
    "singletons": [0, 1, 2, 3],
    "one row": [2],
    "duplicates": [0, 0, 1, 1, 2],
    "opposite rows": [0, 0, 1, 1, 2, 2],
    "zeros": [0, 0, 1, 2],
}


def create(name, of_loss, seed=1, dtype=torch.float64, **options) -> Any:
    """A rival after its warm-up, around a loss of five classes in six dimensions."""
    loss = baselines.create(of_loss, num_classes=CLASSES, dim=DIM, generator=generator(0)).to(dtype)
    rival = rivals.create(name, loss, generator=generator(seed), **options)
    rival.start()
    return rival


def batch(kind="usual", dtype=torch.float64):
    """Images of six numbers, which a flattening network takes for embeddings, and their labels."""
    labels = torch.tensor(BATCHES[kind])
    rows = torch.randn(len(labels), DIM, dtype=torch.float64, generator=generator(3))
    if kind in ("duplicates", "opposite rows"):
        rows = rows[:1].repeat(len(labels), 1)
        rows[1::2] *= -1 if kind == "opposite rows" else 1
    if kind == "zeros":
        rows[1:3] = 0
    return rows.to(dtype).view(-1, 3, 1, 2).requires_grad_(), labels


def values(rival, steps=3, **options):
    return [rival.objective(nn.Flatten(), *batch(**options)).item() for _ in range(steps)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "of_loss"), TAKEN)
def test_values_and_gradients_are_finite(name, of_loss, dtype):
    for kind in BATCHES:
        rival = create(name, of_loss, dtype=dtype)
        for _ in range(2):
            images, labels = batch(kind, dtype)
            value = rival.objective(nn.Flatten(), images, labels)
            value.backward()
            assert value.shape == ()
            assert value.dtype == dtype
            gradients = [images.grad, *(p.grad for p in rival.parameters() if p.grad is not None)]
            assert all(x.isfinite().all() for x in (value, *gradients)), kind


@pytest.mark.parametrize(("name", "of_loss"), TAKEN)
def test_outside_of_training_it_is_the_loss_to_the_bit(name, of_loss):
    for kind in BATCHES:
        rival = create(name, of_loss).eval()
        state = rival.generator.get_state()
        images, labels = batch(kind)
        assert torch.equal(rival.objective(nn.Flatten(), images, labels), rival.loss(images.flatten(1), labels))
        assert torch.equal(rival.generator.get_state(), state)


@pytest.mark.parametrize(("name", "of_loss"), TAKEN)
def test_a_seed_determines_its_draws_and_its_state_continues_them(name, of_loss):
    rival, twin = create(name, of_loss), create(name, of_loss)
    assert values(rival) == values(twin)
    resumed = create(name, of_loss, seed=8)
    resumed.load_state_dict(copy.deepcopy(rival.state_dict()))
    assert values(resumed) == values(rival)


@pytest.mark.parametrize(("name", "of_loss"), TAKEN)
def test_single_precision_equals_double(name, of_loss):
    for kind in ("usual", "one class", "singletons"):
        pairs = zip(*(values(create(name, of_loss, dtype=d), kind=kind, dtype=d) for d in DTYPES), strict=True)
        for single, double in pairs:
            assert abs(single - double) <= 1e-5 * max(1, abs(double)), kind


@pytest.mark.parametrize(("name", "of_loss"), TAKEN)
def test_autocast_changes_nothing(name, of_loss):
    results = []
    for enabled in (False, True):
        rival, (images, labels) = create(name, of_loss, dtype=torch.float32), batch(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = rival.objective(nn.Flatten(), images, labels)
            value.backward()
        results.append((value, images.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(("name", "of_loss"), FIRST_TAKEN)
def test_it_leaves_no_trace_on_the_clean_batch(name, of_loss):
    """The first forward pass, the running statistics and torch's generator are those of the loss alone."""
    network, images = setting()
    twin = copy.deepcopy(network)
    seen: dict[nn.Module, list[torch.Tensor]] = {network: [], twin: []}
    for each in seen:
        each.register_forward_hook(lambda module, _, output: seen[module].append(output.detach()))
    loss = baselines.create(of_loss, num_classes=3, dim=4, generator=generator()).double()
    rival = rivals.create(name, copy.deepcopy(loss), generator=generator())
    rival.start()
    plain, mixed = step(loss, network, images), step(rival, twin, images)
    assert torch.equal(seen[network][0], seen[twin][0])
    for ours, theirs in zip(plain[2], mixed[2], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(plain[3], mixed[3])
    assert sum(network.rows) + rival.mixed_rows == sum(twin.rows)
    assert len(LABELS) == network.rows[0]


@pytest.mark.parametrize("name", NAMES)
def test_refuses_every_other_kind_with_its_reason(name):
    reasons = rivals.describe(name).refuses
    assert reasons
    for of_loss in baselines.names():
        kind = baselines.describe(of_loss).kind
        expected = f"{name} does not take {of_loss}: it {reasons[kind]}" if kind in reasons else None
        made = baselines.create(of_loss, num_classes=CLASSES, dim=DIM)
        assert rivals.refusal(name, of_loss) == rivals.refusal(name, made) == expected
        if expected:
            with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
                rivals.create(name, made)
    assert "not one of the losses" in str(rivals.refusal(name, nn.CrossEntropyLoss()))


@pytest.mark.parametrize(("name", "of_loss"), FIRST_TAKEN)
def test_its_options(name, of_loss):
    about = rivals.describe(name)
    assert create(name, of_loss).effective() == about.parameters
    assert set(about.search_space) <= set(about.parameters)
    for option, space in about.search_space.items():
        for value in space.get("choices") or (space["low"], space["high"]):
            assert create(name, of_loss, **{option: value}).effective()[option] == value
    for option in about.parameters:
        for value in (-1.5, "nonsense"):
            with pytest.raises(ValueError, match=rf"{option} = {value!r}"):
                create(name, of_loss, **{option: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=rf"{name} has no option 'wait'"):
        create(name, of_loss, wait=1)


@pytest.mark.parametrize("name", NAMES)
def test_its_source_says_the_same_as_its_class(name):
    rival = rivals.find(name)
    parameters = {
        p.name: p.default for p in inspect.signature(rival).parameters.values() if p.name not in rivals.SIZES
    }
    expected = parameters, {key: getattr(rival, key) for key in rivals.DEFAULTS}
    path = Path(rivals.__file__).with_name(f"{name}.py")
    assert stated_in(path, "Rival", rivals.DEFAULTS, rivals.SIZES) == expected
    about = rivals.describe(name)
    assert about.parameters == parameters
    assert about.paper.endswith(str(about.year))
    assert set(about.published_with) <= set(baselines.names())


@pytest.mark.parametrize(("name", "of_loss"), FIRST_TAKEN)
def test_its_learnable_tensors_are_those_of_the_loss(name, of_loss):
    rival = create(name, of_loss)
    assert list(rival.parameters()) == list(rival.loss.parameters())
    assert rival.parameter_groups(0.5) == rival.loss.parameter_groups(0.5)


@pytest.mark.parametrize(("name", "of_loss"), FIRST_TAKEN)
def test_counts_one_step_at_a_time_and_only_in_training(name, of_loss):
    rival = create(name, of_loss)
    if not rival.counts:
        pytest.skip("it counts nothing")
    assert rival.means() == {}
    assert rival.warnings() == ()
    values(rival.eval())
    assert rival.means() == {}
    values(rival.train())
    assert rival.totals[0] == 3
    assert set(rival.means()) == set(rival.counts)
