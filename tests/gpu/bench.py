"""Train on any number of images, or on one batch that is ready on the device."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config import Trial
from harness.data.images import Images, Originals
from harness.runs.record import Epoch
from harness.training.bench import Bench
from harness.training.network import augmentation, build_embedder
from harness.training.pictures import images_of, open_dataset
from harness.training.pipeline import IN_TURN, Pipeline
from tests.gpu.place import Place


@dataclass(frozen=True)
class Again:
    """`count` images: those of `images` in a random order, repeated as needed."""

    images: Images | Originals
    chosen: np.ndarray  # (count,)

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Any:
        """See `Images.batch`."""
        return self.images.batch(self.chosen[np.asarray(indices)], device)


@dataclass(frozen=True)
class Ready:
    """Images and augmentation in one, which always return the same batch on the device."""

    pixels: Tensor

    def batch(self, indices: Any, device: Any = None) -> Tensor:
        """Return the batch."""
        return self.pixels

    def load(self, images: Tensor, generator: Any = None, each: Any = None) -> Tensor:
        """Return the batch unchanged."""
        return images

    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the batch unchanged."""
        return images


def bench_over(place: Place, trial: Trial, count: int) -> Bench:
    """Return the bench of a trial with `count` training images, repeating those that exist."""
    torch.set_num_threads(trial.training.threads)
    dataset = open_dataset(trial.dataset, place.few, place.cache)
    order = np.random.default_rng(0).permutation(len(dataset))
    chosen = order[np.arange(count) % len(order)]
    many = replace(
        dataset, keys=tuple(map(str, range(count))), labels=dataset.labels[chosen], split=np.full(count, "train")
    )
    images = Again(images_of(trial, dataset, place.sources("benches")), chosen)
    model = build_embedder(trial).to(place.device)
    transform, pipeline = augmentation(trial, model, dataset), Pipeline.of(place.device, place.cores, place.cores)
    return Bench(trial, many, many.split, images, model, transform, place.device, pipeline=pipeline)


def with_ready_batch(bench: Bench) -> Bench:
    """Return the same bench with a ready batch, so that training never waits for images."""
    pixels = one_batch(bench)[0]
    return replace(bench, images=Ready(pixels), augmentation=Ready(pixels), pipeline=IN_TURN)


def one_batch(bench: Bench) -> tuple[Tensor, Tensor]:
    """Return images (n, 3, side, side) on the device and their labels (n,) in host memory, five of each class."""
    part, size = bench.split_images("train"), bench.trial.training.batch_size
    order = np.argsort(part.labels, kind="stable")
    starts = [np.flatnonzero(part.labels[order] == c)[:5] for c in np.unique(part.labels)]
    rows = order[np.concatenate(starts)[:size]]
    generator = torch.Generator(bench.device).manual_seed(0)
    images = bench.augmentation.train(bench.images.batch(part.indices[rows], bench.device), generator)
    return images, torch.as_tensor(part.labels[rows])


def train(bench: Bench) -> list[Epoch]:
    """Train without validation and checkpoints, and return all epochs but the first, which warms up."""
    with TemporaryDirectory() as folder:
        for progress in bench.train(bench.criterion(), unscored, Path(folder), save=unsaved):
            curve = progress.curve
    return [epoch for epoch in curve if epoch.epoch > 1]


def unscored() -> tuple[dict[str, float], dict[str, float]]:
    """Replace validation."""
    return {"MAP@R": 0.0}, {}


def unsaved(*_: Any) -> None:
    """Replace saving a checkpoint."""
