"""Losses and Metrix on a GPU: the values and gradients of the CPU, at every level and in either precision."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import baselines
import metrix
from harness.training.embedder import Embedder
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
    wrong, largest = [], {"float32": 0.0, "bfloat16": 0.0, "bfloat16 on the CPU": 0.0}
    for name in place.sizes.losses or baselines.names():
        for level, options in LEVELS.items():
            if options and metrix.refusal(name, **options):
                continue
            here, there = (computed(name, options, device, "train", bf16=False) for device in (CPU, place.device))
            apart = distance(there, here)
            if not apart < 1e-3:
                wrong.append(f"{name}, {level}, float32: {apart:.2g} from the CPU's")
            # Frozen BatchNorm, since its statistics of rows in bfloat16 make a fifth of a gradient noise.
            exact, own = (computed(name, options, CPU, "frozen", bf16=bf16) for bf16 in (False, True))
            noise, blurred = (
                errors(some, exact) for some in (own, computed(name, options, place.device, "frozen", True))
            )
            if not (blurred[0] < 4 * noise[0] + 0.005 and blurred[1] < 3 * noise[1] + 0.02):
                wrong.append(f"{name}, {level}, bfloat16: {blurred} from float32, the CPU's own {noise}")
            for kind, error in (("float32", apart), ("bfloat16", blurred[1]), ("bfloat16 on the CPU", noise[1])):
                largest[kind] = max(largest[kind], error)
    for kind, error in largest.items():
        place.note(f"value and gradient in {kind} against the CPU's float32, the largest relative error", error)
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
    place.note("value and gradient with TF32 and autocast on, against float64, the largest relative error", apart)
    assert not wrong, "\n".join(wrong)


def computed(name: str, level: dict | None, device: torch.device, norm: str, bf16: bool) -> list[Tensor]:
    """Value and gradients of an objective through a small network, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(CLASSES).repeat_interleave(EXAMPLES)
    images = torch.randn(len(labels), 3, 32, 32, generator=generator)
    images += torch.randn(CLASSES, 3, 32, 32, generator=generator)[labels]
    model = Embedder("test_resnet", dim=NETWORK_DIM, norm=norm, pretrained=False, side_px=32, generator=0).to(device)
    objective = criterion(name, level, NETWORK_DIM, CLASSES).to(device)
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
    """The largest relative error of the value and of any gradient; not a number fails every comparison.

    A gradient that is small beside the others, such as that of a bias, is measured against a thousandth of all.
    """
    whole = torch.stack([part.norm() for part in expected[1:]]).norm()
    floors = [1e-6, *[1e-3 * whole.item()] * (len(expected) - 1)]
    return max(relative(a, b, floor) for a, b, floor in zip(found, expected, floors, strict=True))


def errors(found: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """The relative errors of the value, and of all gradients as one vector."""
    gradients = (torch.cat([part.flatten() for part in some[1:]]) for some in (found, expected))
    return relative(found[0], expected[0]), relative(*gradients)


def relative(found: Tensor, expected: Tensor, floor: float = 1e-6) -> float:
    """‖found − expected‖ ÷ ‖expected‖, infinite where something is no number."""
    error = ((found - expected).norm() / expected.norm().clamp(min=floor)).item()
    return error if math.isfinite(error) else math.inf


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Matrix products in whatever precision is fast, as a training script may choose."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
