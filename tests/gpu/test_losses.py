"""Losses and Metrix on a GPU: the values and gradients of the CPU, at every level and in either precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import baselines
import metrix
from harness.models import Embedder
from tests.gpu.place import Place
from tests.performance.losses import batch

LEVELS = {
    "baseline": None,
    "embedding": {"at": "embedding"},
    "feature": {"at": "feature"},
    "feature[stage=layer3]": {"at": "feature", "stage": "layer3"},
    "input": {"at": "input"},
}
CLASSES, EXAMPLES, NETWORK_DIM = 8, 5, 32
CPU = torch.device("cpu")


def test_values_and_gradients_are_those_of_the_cpu(place: Place) -> None:
    """In float32 to rounding; under bfloat16 autocast as near to the CPU's float32 as the CPU's own bfloat16 is."""
    wrong, apart, blurred = [], 0.0, 0.0
    network = Embedder("test_resnet", dim=NETWORK_DIM, pretrained=False, side_px=32, generator=0)
    for name in place.sizes.losses or baselines.names():
        for level, options in LEVELS.items():
            if options and metrix.refusal(name, **options):
                continue
            exact = computed(network, name, options, CPU, bf16=False)
            difference = distance(computed(network, name, options, place.device, bf16=False), exact)
            apart = max(apart, difference)
            if not difference < 1e-3:
                wrong.append(f"{name}, {level}, float32: {difference:.2g} from the CPU's")
            own = distance(computed(network, name, options, CPU, bf16=True), exact)
            difference = distance(computed(network, name, options, place.device, bf16=True), exact)
            blurred = max(blurred, difference)
            if not difference < 4 * own + 0.02:
                wrong.append(f"{name}, {level}, bfloat16: {difference:.2g} from float32, the CPU's {own:.2g}")
    place.note("value and gradient, float32, against the CPU: the largest difference", apart, "of its norm")
    place.note("value and gradient, bfloat16, against float32: the largest difference", blurred, "of its norm")
    assert not wrong, "\n".join(wrong)


def test_neither_tf32_nor_autocast_reaches_a_loss(place: Place) -> None:
    """Allow TF32 and compute under bfloat16 autocast: losses at the embedding level remain exact to float32."""
    wrong, apart = [], 0.0
    for name in place.sizes.losses or baselines.names():
        for level in ("baseline", "embedding"):
            options = LEVELS[level]
            if options and metrix.refusal(name, **options):
                continue
            exact = of_embeddings(name, options, CPU, torch.float64)
            with tf32_allowed(), torch.autocast(place.device.type, torch.bfloat16):
                difference = distance(of_embeddings(name, options, place.device, torch.float32), exact)
                left = torch.get_float32_matmul_precision()
            assert left == "medium", f"{name} left the precision of matrix products at {left!r}"
            apart = max(apart, difference)
            if not difference < 2e-4:  # TF32 rounds to 11 bits, bfloat16 to 8: 5e-4 and 4e-3
                wrong.append(f"{name}, {level}: {difference:.2g} from float64")
    place.note("value and gradient with TF32 and autocast on, against float64: the largest difference", apart, "")
    assert not wrong, "\n".join(wrong)


def computed(network: nn.Module, name: str, level: dict | None, device: torch.device, bf16: bool) -> list[Tensor]:
    """Value and gradients of an objective through a copy of the network."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(CLASSES).repeat_interleave(EXAMPLES)
    images = torch.randn(len(labels), 3, 32, 32, generator=generator)
    images += torch.randn(CLASSES, 3, 32, 32, generator=generator)[labels]
    model = Embedder("test_resnet", dim=NETWORK_DIM, pretrained=False, side_px=32, generator=0)
    model.load_state_dict(network.state_dict())
    model, objective = model.to(device), criterion(name, level, NETWORK_DIM, CLASSES).to(device)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = objective.objective(model, images.to(device), labels.to(device))
        value.backward()
    return together(value, [*model.parameters(), *objective.parameters()])


def of_embeddings(name: str, level: dict | None, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The same at the embedding level, for 100 embeddings of 512 dimensions."""
    embeddings, labels = batch()
    leaf = embeddings.detach().to(device, dtype).requires_grad_()
    objective = criterion(name, level, leaf.shape[1], int(labels.max()) + 1).to(device, dtype)
    value = objective(leaf, labels.to(device))
    value.backward()
    return together(value, [leaf, *objective.parameters()])


def criterion(name: str, level: dict | None, dim: int, classes: int) -> nn.Module:
    """A loss, in Metrix where a level is given; its random numbers are the same every time."""
    loss = baselines.create(name, num_classes=classes, dim=dim, generator=torch.Generator().manual_seed(2))
    return metrix.Metrix(loss, **level, generator=torch.Generator().manual_seed(3)) if level else loss


def together(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The value and the gradient of each leaf that has one, on the CPU in float64."""
    return [x.detach().double().cpu() for x in (value, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of the value and of a gradient; not a number fails every comparison.

    A gradient that is small beside the others, such as that of a bias, is measured against a thousandth of all.
    """
    whole = torch.stack([part.norm() for part in expected[1:]]).norm()
    floors = [1e-6, *[1e-3 * whole.item()] * (len(expected) - 1)]
    errors = [(a - b).norm() / b.norm().clamp(min=floor) for a, b, floor in zip(found, expected, floors, strict=True)]
    return torch.stack(errors).max().item()


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Matrix products in whatever precision is fast, as a training script may choose."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
