"""What a trial's network sees: decoded images, image files, or the features of a frozen backbone.

Each is prepared once per machine, before any trial waits for it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines.numerics import full_precision
from harness.config import PIXELS, Choice, Trial
from harness.data import datasets
from harness.data.cache import default_folder
from harness.data.datasets import Dataset
from harness.data.images import Images, Originals, contents, open_images
from harness.data.loading import Each
from harness.streams import stream
from harness.training.devices import rank_devices
from harness.training.features import Announce, Features, Source, features_path, open_features
from harness.training.network import augmentation, build_embedder
from harness.training.pipeline import Pipeline

EMBEDDING_BATCH = 256
FEATURE_BATCH = 64  # images whose features are computed at a time
Progress = Callable[[int, int], None]
Pictures = Images | Originals | Features


@dataclass(frozen=True)
class Sources:
    """Where a trial reads its data, writes its results and runs. None of it changes what the trial computes.

    `ranks` is the number of GPUs (cuda:0, cuda:1, …) or processes of this machine that share a batch. `chunk_rows` is
    the number of rows that go through the network at a time; None means all, and fewer after memory ran out.
    `gpu_share` is the share of a GPU that the trial has, for the record: trials that share a GPU are slower.
    `processors` is the number of processors that the trial may use; None means all of this process.
    """

    out: str | Path
    data: Path | None = None
    cache: Path | None = None
    device: str | None = None
    grid: tuple[tuple[str, Any], ...] = ()
    identity: str | None = None  # of the run folder that `out` must be; None accepts any
    ranks: int = 1
    chunk_rows: int | None = None
    gpu_share: float | None = None
    processors: int | None = None

    @property
    def processors_per_rank(self) -> int:
        """Return how many processors each rank of the trial may use."""
        return (self.processors or len(os.sched_getaffinity(0))) // self.ranks


@lru_cache(maxsize=4)
def _dataset(name: str, options: tuple[tuple[str, Any], ...], data: Path | None, cache: Path | None) -> Dataset:
    return datasets.load(name, data=data, cache=cache, **dict(options))


def open_dataset(choice: Choice, data: Path | None = None, cache: Path | None = None) -> Dataset:
    """Open and check a dataset, once per process for all of its trials."""
    return _dataset(choice.name, tuple(sorted(choice.options.items())), data, cache)


def images_of(
    trial: Trial,
    dataset: Dataset,
    sources: Sources,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> Images | Originals:
    """Return the images of a trial: decoded (now, if they are not in the cache), or as files."""
    cache = sources.cache or default_folder()
    if trial.images.path == "classical":
        return Originals(dataset, contents(dataset, cache), trial.images.decoder)
    return open_images(dataset, trial.images.stored_px, cache, progress, announce)


def features_of(
    trial: Trial,
    dataset: Dataset,
    sources: Sources,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> Features:
    """Return the pooled features of a dataset that a frozen trial trains on, computed now if no file has them.

    All processors of this process compute them, or the trial's GPU.
    """
    cache = sources.cache or default_folder()
    path = features_path(trial, dataset, cache)
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        return open_features(
            path, len(dataset), lambda: _source(trial, dataset, sources, announce), announce, progress
        )
    finally:
        torch.set_num_threads(threads)


def _source(trial: Trial, dataset: Dataset, sources: Sources, announce: Announce | None) -> Source:
    """Return what computes the features of a trial: its images, and its network in evaluation mode."""
    images = images_of(trial, dataset, sources, announce)
    device = rank_devices(1, sources.device)[0]
    network = build_embedder(trial).to(device).eval()
    transform, views = augmentation(trial, network, dataset), trial.images.views

    pipeline = Pipeline.of(device, sources.processors_per_rank, torch.get_num_threads())

    def read(which: range, each: Each) -> list[Any]:
        batch = images.batch(np.arange(which.start, which.stop), device)
        drawn: list[torch.Generator | None] = [None]  # the first view is that of a test
        for view in range(1, views):
            seed = stream(0, dataset.name, "features", view, which.start)
            drawn.append(torch.Generator(device).manual_seed(seed))
        return [(transform.load(batch, generator, each), generator) for generator in drawn]

    @torch.inference_mode()
    def pooled(loaded: list[Any]) -> np.ndarray:
        seen = (transform.train(*view) if view[1] else transform.evaluate(view[0]) for view in loaded)
        with full_precision(device, convolutions=True):  # a CPU and a GPU may read each other's file
            return torch.stack([network.pooled(view).float() for view in seen], dim=1).cpu().numpy()

    def rows(parts: Iterable[range]) -> Iterator[np.ndarray]:
        with closing(pipeline.run(read, lambda loaded: loaded, parts, device)) as batches:
            yield from map(pooled, batches)

    names = ("width", "weights", "weights_read", "weights_digest", "normalisation")
    about = {name: getattr(network, name) for name in names}
    about |= {"parameters": sum(p.numel() for p in network.backbone.parameters()), "images": images.fingerprint}
    title = f"the feature file of {dataset.name} from {trial.backbone.name} at {trial.images.side_px} px"
    return Source(title, about, views, rows, FEATURE_BATCH)


def pictures_of(
    trial: Trial,
    dataset: Dataset,
    sources: Sources,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> Pictures:
    """Return what a trial's network sees: images, or the features of a frozen backbone."""
    return (features_of if _sees_features(trial) else images_of)(trial, dataset, sources, announce, progress)


def _sees_features(trial: Trial) -> bool:
    return trial.model.backbone == "frozen" and trial.arm.loss != PIXELS


def prepare_images(trials: Sequence[Trial], sources: Sources, announce: Announce) -> None:
    """Decode the images and compute the features that these trials need, so that no trial waits for another.

    `announce` is called with the disk space needed before it is used. Raises DatasetError naming every unreadable
    image, and CacheError if a file does not fit on the disk.
    """
    for trial in same_pictures(trials):
        pictures_of(trial, open_dataset(trial.dataset, sources.data, sources.cache), sources, announce)


def same_pictures(trials: Sequence[Trial]) -> list[Trial]:
    """Return one trial for each set of images, or of features, that these trials need."""

    def pictures(trial: Trial) -> tuple[Any, ...]:
        network = (trial.backbone.model_dump_json(), trial.model.pooling) if _sees_features(trial) else None
        return trial.dataset.model_dump_json(), trial.images, network

    return list({pictures(trial): trial for trial in trials}.values())
