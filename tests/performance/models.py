"""What the Embedder costs beyond the network, and what a mixed row costs at each stage.

Seconds of a training step (forward and backward, one thread): the bare timm network with its own pooling and
classifier, the Embedder, and the Embedder with one mixed row per image at every stage, whose cost the share of
operations after the stage predicts. Ratios within one run: all variants take turns, medians of the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from harness.training import anatomy
from harness.training.embedder import Embedder
from tests.performance._clock import take_turns

NETWORKS = (("test_resnet", 32, 100), ("test_vit", 32, 100), ("resnet18", 64, 50))
DIM = 128


def main() -> None:
    """Print the seconds of a step and the ratios for a few networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"a training step of the Embedder, one thread, median of {rounds} rounds")
    for name, side_px, batch in NETWORKS:
        began = time.perf_counter()
        anatomy.stages(name, None, side_px)
        probed = time.perf_counter() - began
        model = Embedder(name, dim=DIM, pretrained=False, side_px=side_px, generator=0).train()
        size: dict[str, Any] = {"img_size": side_px} if "img_size" in model._anatomy.options else {}
        bare = timm.create_model(name, num_classes=DIM, **size).train()
        variants = _variants(bare, model, torch.randn(batch, 3, side_px, side_px))
        seconds = take_turns({key: _backward_too(step) for key, step in variants.items()}, rounds)
        plain = seconds["embedder"]
        print(
            f"  {name}, {batch} images of {side_px} px: bare {_ms(seconds['bare'])}, embedder {_ms(plain)}, "
            f"ratio {_ratio(plain, seconds['bare']):.3f}; all stages probed once in {probed:.2f} s"
        )
        for stage in model.stages():
            cost, share = _ratio(seconds[stage], plain), model.share(stage)
            print(f"    a mixed row an image at {stage:9} {cost:5.2f} of a plain step (operations: {1 + share:.2f})")


def _variants(bare: nn.Module, model: Embedder, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    partner = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))

    def mix(h: Tensor) -> Tensor:
        return torch.lerp(h[partner], h, 0.7)

    def joint(stage: str) -> Callable[[], Tensor]:
        return lambda: torch.cat(model.forward_joint(stage, images, mix))

    steps = {"bare": lambda: bare(images), "embedder": lambda: model(images)}
    return steps | {stage: joint(stage) for stage in model.stages()}


def _backward_too(step: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: step().sum().backward()


def _ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} ms"


if __name__ == "__main__":
    main()
