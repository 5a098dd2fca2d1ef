"""The bench of a trial: what its settings become, the data, the network, the objective and the device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import baselines
import metrix
from harness.config import Choice, Trial
from harness.data import datasets, scorable, splits
from harness.data.cache import default_folder
from harness.data.datasets import Dataset, DatasetError
from harness.data.images import Images, Originals, contents, open_images
from harness.data.loading import Augmentation
from harness.errors import UserError
from harness.evaluation import retrieval
from harness.evaluation.conformance import conformance
from harness.evaluation.spread import spread
from harness.fairness import rules
from harness.fairness.protocols import PROTOCOLS, Protocol
from harness.streams import stream
from harness.training import parallel, pml
from harness.training.chunked import Chunked
from harness.training.devices import rank_devices
from harness.training.embedder import Embedder
from harness.training.loop import Diverged, Progress, train

EMBEDDING_BATCH = 256


class Unfair(UserError):
    """A trial that a fairness rule forbids; the message is what the rule found."""


@dataclass(frozen=True)
class Sources:
    """Where a trial finds its data and leaves its results, and on what it runs; no part of what it computes.

    `ranks`: GPUs (cuda:0, cuda:1, …) or processes of this machine that share a batch. `chunk_rows`: rows that cross
    the network at a time; None is all, and fewer from where memory runs out. `gpu_share`: how much of a GPU it has to
    itself, for the record: trials that share one are slower.
    """

    out: str | Path
    data: Path | None = None
    cache: Path | None = None
    device: str | None = None
    grid: tuple[tuple[str, Any], ...] = ()
    identity: str | None = None  # which run folder `out` must be; None: the one that is there
    ranks: int = 1
    chunk_rows: int | None = None
    gpu_share: float | None = None


@dataclass(frozen=True)
class Part:
    """The images of one split: their indices in the dataset and their labels."""

    indices: Tensor
    labels: np.ndarray


class Pixels(nn.Flatten):
    """Images (n, 3, side, side) in [0, 1] as vectors, for the floor that compares them by their cosine.

    A black image has no direction: it counts as an evenly grey one, which is what ever darker grey comes to.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Vectors (n, 3·side²), none of them zero."""
        vectors = super().forward(images)
        return torch.where(vectors.any(dim=1, keepdim=True), vectors, 1.0)


@dataclass(frozen=True)
class Bench:
    """What a trial works with, once its settings have become things."""

    trial: Trial
    dataset: Dataset
    split: np.ndarray
    images: Images | Originals
    model: nn.Module
    augmentation: Augmentation
    device: torch.device
    embedding_batch: int = EMBEDDING_BATCH
    asked: scorable.Scores = field(default_factory=partial(scorable.Scores, {}))

    @classmethod
    def of(cls, trial: Trial, sources: Sources, chunked: tuple[int, int] | None = None, rank: int = 0) -> "Bench":
        """Open the data, build the network, choose the device."""
        torch.set_num_threads(trial.training.threads)
        device = rank_devices(sources.ranks, sources.device)[rank]
        dataset = open_dataset(trial.dataset, sources.data, sources.cache)
        images = images_of(trial, dataset, sources)
        split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
        refuse(rules.over_data(dataset, split))
        scores = scores_of(trial, dataset, split)
        if scores.problems:
            raise DatasetError("\n  ".join(scores.problems))
        model = Pixels() if trial.arm.loss == "pixels" else build_embedder(trial).to(device)
        bench = cls(trial, dataset, split, images, model, augmentation(trial, model, dataset), device, asked=scores)
        if chunked is None:
            return bench
        _, rows = chunked
        return replace(bench, model=Chunked(model, rows), embedding_batch=min(rows, EMBEDDING_BATCH))

    def divided(self) -> "Bench":
        """The same with its rows and files divided among the ranks, which all must ask for what they ask of it."""
        augmentation = parallel.Divided(**vars(self.augmentation))
        return replace(self, model=parallel.Parallel(self.model), augmentation=augmentation)

    def criterion(self) -> nn.Module:
        """The objective of the trial, on the device."""
        return build_criterion(self.trial, int(self.part("train").labels.max()) + 1).to(self.device)

    def train(
        self, criterion: nn.Module, validate: Callable[[], Any], folder: Path, **how: Any
    ) -> Iterator[Progress]:
        """Train on the images of the training split; `how` as `harness.training.loop.train` has it."""
        training = self.part("train")
        return train(
            self.trial,
            self.model,
            criterion,
            self.images,
            training.indices,
            torch.as_tensor(training.labels),
            self.augmentation,
            validate,
            PROTOCOLS[self.trial.protocol].choose,
            folder,
            self.device,
            **how,
        )

    def part(self, name: str) -> Part:
        """The images of split `name`, labels renumbered 0 … classes−1 (proxies are counted by them)."""
        indices = np.flatnonzero(self.split == name)
        return Part(torch.as_tensor(indices), np.unique(self.dataset.labels[indices], return_inverse=True)[1])

    @torch.inference_mode()
    def embed(self, indices: Tensor) -> Tensor:
        """Embeddings (n, d) float32 of images[indices] on the device, in evaluation mode, without augmentation.

        Raises Diverged where one of them is zero or not finite: nothing can be retrieved with it.
        """
        self.model.eval()
        batches = indices.split(self.embedding_batch)
        embeddings = torch.cat(
            [self.model(self.augmentation.evaluate(self.images.batch(b, self.device))).float() for b in batches]
        )
        largest = embeddings.abs().amax(dim=1)
        if lost := int((~largest.isfinite() | (largest == 0)).sum()):
            raise Diverged(f"{lost} of {len(indices)} embeddings are zero or not finite, so nothing can be scored")
        return embeddings

    def scores(self, name: str) -> tuple[dict[str, float], dict[str, float]]:
        """Scores and spread of a split that is no test split; {} where the protocol keeps no image for it."""
        some = self.part(name)
        if not len(some.indices):
            return {}, {}
        embeddings = self.embed(some.indices)
        values = retrieval.evaluate(embeddings, some.labels, ks=self.asked.ks[name]).values
        return values, spread(embeddings.cpu().numpy()) if self.trial.arm.at != "floor" else {}


@lru_cache(maxsize=1)
def evaluator_faults() -> tuple[rules.Finding, ...]:
    """What the evaluator gets wrong (FAIR-16 to 18); looked at once in a process, in a few tenths of a second."""
    return rules.over_evaluator(retrieval.evaluate, conformance)


def refuse(findings: Sequence[rules.Finding]) -> None:
    """Raise Unfair where a finding says that the trial may not run."""
    if wrong := [finding.sentence for finding in findings if finding.severity == "E"]:
        raise Unfair("\n  ".join(wrong))


@lru_cache(maxsize=4)
def _dataset(name: str, options: tuple[tuple[str, Any], ...], data: Path | None, cache: Path | None) -> Dataset:
    return datasets.load(name, data=data, cache=cache, **dict(options))


def open_dataset(choice: Choice, data: Path | None = None, cache: Path | None = None) -> Dataset:
    """The dataset, checked; opened once in a process, whatever the number of trials it runs."""
    return _dataset(choice.name, tuple(sorted(choice.options.items())), data, cache)


def images_of(
    trial: Trial, dataset: Dataset, sources: Sources, announce: Callable[[str], None] | None = None
) -> Images | Originals:
    """The pixels of a trial: decoded ones (now, where no trial has needed them before), or the files themselves."""
    cache = sources.cache or default_folder()
    if trial.images.path == "classical":
        return Originals(dataset, contents(dataset, cache))
    return open_images(dataset, trial.images.stored_px, cache, announce=announce)


def prepare_images(trials: Sequence[Trial], sources: Sources, announce: Callable[[str], None]) -> None:
    """Decode what these trials will need and this machine does not have, so that none of them waits for another.

    `announce` is told how much disk it takes, before it is taken. Raises DatasetError naming every image that cannot
    be read, and CacheError when they do not fit.
    """
    for trial in {(t.dataset.model_dump_json(), t.images): t for t in trials}.values():
        images_of(trial, open_dataset(trial.dataset, sources.data, sources.cache), sources, announce)


def split_of(dataset: Dataset, protocol: Protocol, fold: int | None = None, folds: int | None = None) -> np.ndarray:
    """The split (n,) of a dataset under a protocol: train, test, and validation where something is selected on it.

    Under cross-validation it is that of fold `fold` of 1 … `folds`.
    """
    if protocol.validation_share == 0:
        return splits.no_validation(dataset)
    if folds is not None:
        return splits.fold_validation(dataset, fold, folds)
    return splits.fair_validation(dataset, protocol.validation_share)


def scores_of(trial: Trial, dataset: Dataset, split: np.ndarray) -> scorable.Scores:
    """What a trial will score of a dataset under `split` (n,)."""
    return scorable.scores(dataset, split, trial.ks, PROTOCOLS[trial.protocol].reads_test)


def splits_of(dataset: Dataset, trials: Sequence[Trial]) -> Iterator[tuple[list[Trial], np.ndarray]]:
    """Each split (n,) that these trials of one dataset use, with those that score it alike.

    Raises DatasetError where the dataset cannot be split so.
    """
    users: dict[tuple, list[Trial]] = {}
    for trial in trials:
        users.setdefault((trial.protocol, trial.fold, trial.folds, trial.ks), []).append(trial)
    for (protocol, fold, folds, _), some in users.items():
        yield some, split_of(dataset, PROTOCOLS[protocol], fold, folds)


def build_embedder(trial: Trial) -> Embedder:
    """The network of a trial; its initial weights depend on seed, dataset and backbone, never on the arm."""
    generator = torch.Generator().manual_seed(
        stream(trial.seed, trial.dataset.name, trial.backbone.name, "initial weights")
    )
    return Embedder(
        trial.backbone.name,
        dim=trial.model.dim,
        pooling=trial.model.pooling,
        norm=trial.model.norm,
        pretrained=trial.backbone.pretrained,
        options=trial.backbone.options,
        mean=trial.backbone.mean,
        std=trial.backbone.std,
        interpolation=trial.backbone.interpolation,
        side_px=trial.images.side_px,
        generator=generator,
    )


def training_classes(trial: Trial, sources: Sources) -> int:
    """How many classes a trial trains on."""
    dataset = open_dataset(trial.dataset, sources.data, sources.cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
    return len(np.unique(dataset.labels[split == "train"]))


def build_criterion(trial: Trial, num_classes: int) -> nn.Module:
    """The loss of a trial, in Metrix where its arm says so. Proxies depend on (seed, loss), λ on (seed, "metrix")."""
    arm, seed = trial.arm, trial.seed
    generator = torch.Generator().manual_seed(stream(seed, arm.loss, "proxies"))
    create = pml.create if arm.loss.startswith(pml.PREFIX) else baselines.create
    loss = create(arm.loss, num_classes=num_classes, dim=trial.model.dim, generator=generator, **arm.options)
    if arm.metrix is None:
        return loss
    generator = torch.Generator().manual_seed(stream(seed, "metrix"))
    return metrix.Metrix(loss, **arm.metrix.model_dump(), generator=generator)


def augmentation(trial: Trial, model: nn.Module, dataset: Dataset) -> Augmentation:
    """Crops and flips of the trial, normalised as the weights were trained; plain images in [0, 1] for `pixels`."""
    images = trial.images
    if trial.arm.loss == "pixels":
        return Augmentation(images.side_px, mean=(0.0,) * 3, std=(1.0,) * 3, centre_share=images.centre_share)
    return Augmentation(
        images.side_px,
        mean=model.mean,
        std=model.std,
        interpolation=model.interpolation,
        crop_scale=images.crop_scale,
        crop_ratio=images.crop_ratio,
        flip=dataset.mirrored if images.flip == "auto" else images.flip,
        centre_share=images.centre_share,
    )
