"""The bench of a trial: the data, network, objective and device that its settings describe."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config import Trial
from harness.data import scorable, splits
from harness.data.datasets import Dataset, DatasetError
from harness.data.loading import Augmentation, Each, gpu_decoder_problem
from harness.errors import GridError, UserError
from harness.evaluation import retrieval
from harness.evaluation.conformance import conformance
from harness.evaluation.spread import spread
from harness.fairness import rules
from harness.fairness.protocols import PROTOCOLS, Protocol
from harness.training import compiled, parallel
from harness.training.backbones import ModelError
from harness.training.chunked import Chunked
from harness.training.criterion import Criterion, build_criterion
from harness.training.devices import rank_devices
from harness.training.embedder import Embedder, Network
from harness.training.features import Features
from harness.training.head import frozen_problem
from harness.training.loop import Diverged, Progress, Transform, train
from harness.training.network import Pixels, network_of
from harness.training.pictures import EMBEDDING_BATCH, Pictures, Sources, open_dataset, pictures_of
from harness.training.pipeline import IN_TURN, Pipeline

SAVE_EVERY_S = 5.0  # of a head alone, whose epochs take a tenth of a second


class Unfair(UserError):
    """Raised for a trial that a fairness rule forbids; the message is the rule's finding."""


@dataclass(frozen=True)
class SplitImages:
    """The images of one split: their indices in the dataset and their labels."""

    indices: Tensor
    labels: np.ndarray


@dataclass(frozen=True)
class Bench:
    """The objects that a trial works with. `scored` has the K of R@K by split, and notes about them."""

    trial: Trial
    dataset: Dataset
    split: np.ndarray
    images: Pictures
    model: Network | Pixels
    augmentation: Transform
    device: torch.device
    embedding_batch: int = EMBEDDING_BATCH
    pipeline: Pipeline = IN_TURN
    scored: scorable.Scores = field(default_factory=partial(scorable.Scores, {}))

    @classmethod
    def of(cls, trial: Trial, sources: Sources, chunked: tuple[int, int] | None = None, rank: int = 0) -> "Bench":
        """Open the data, build the network and choose the device. Raise UserError if settings or data are wrong."""
        torch.set_num_threads(trial.training.threads)
        if problem := frozen_problem(trial):
            raise ModelError(problem)
        device = rank_devices(sources.ranks, sources.device)[rank]
        dataset = open_dataset(trial.dataset, sources.data, sources.cache)
        if problem := decoder_problem(trial, dataset, device):
            raise GridError(f"images.decoder {trial.images.decoder}", [problem])
        pictures = pictures_of(trial, dataset, sources)
        split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
        raise_errors(rules.over_data(dataset, split))
        scores = scores_of(trial, dataset, split)
        if scores.problems:
            raise DatasetError("\n  ".join(scores.problems))
        model, transform = network_of(trial, pictures, dataset)
        bench = cls(
            *(trial, dataset, split, pictures, model.to(device), transform, device),
            pipeline=pipeline_of(trial, pictures, device, sources.processors_per_rank),
            scored=scores,
        )
        if chunked is None:
            return bench
        _, rows = chunked
        model = model if isinstance(model, Pixels) else Chunked(model, rows)
        return replace(bench, model=model, embedding_batch=min(rows, EMBEDDING_BATCH))

    def divided(self) -> "Bench":
        """Return a copy that divides its rows and files among the ranks, all of which must make the same calls."""
        assert isinstance(self.augmentation, Augmentation)  # a head on features is not divided
        augmentation = parallel.Divided(**vars(self.augmentation))
        pipeline = replace(self.pipeline, finishes=False)  # ranks exchange what they have read, step by step
        return replace(self, model=parallel.Parallel(self.network), augmentation=augmentation, pipeline=pipeline)

    @cached_property
    def split_fingerprint(self) -> str:
        """Return the fingerprint of the split: names, classes and splits of all images."""
        return splits.fingerprint(self.dataset, self.split)

    @property
    def network(self) -> Network:
        """The network, of any trial but that of the pixel floor."""
        assert not isinstance(self.model, Pixels)
        return self.model

    def criterion(self) -> Criterion:
        """Return the objective of the trial, on the device."""
        training = self.split_images("train")
        classes, images = int(training.labels.max()) + 1, len(training.indices)
        return build_criterion(self.trial, classes, images).to(self.device)

    def train(
        self, criterion: Criterion, validate: Callable[[], Any], folder: Path, **options: Any
    ) -> Iterator[Progress]:
        """Train on the images of the training split; `options` are those of `harness.training.loop.train`.

        A frozen trial is saved every few seconds, any other after each epoch. Where the test is scored after each
        epoch, so is the trial: an epoch that was scored is not repeated.
        """
        training, protocol = self.split_images("train"), PROTOCOLS[self.trial.protocol]
        often = self.trial.model.backbone != "frozen" or protocol.watches_test
        if isinstance(self.model, Embedder):  # not in chunks, whose passes run again
            compiled.compile_backbone(self.model, self.trial.training)
        return train(
            self.trial,
            self.network,
            criterion,
            self.images,
            training.indices,
            torch.as_tensor(training.labels),
            self.augmentation,
            validate,
            protocol.choose,
            folder,
            self.device,
            save_every_s=0.0 if often else SAVE_EVERY_S,
            pipeline=self.pipeline,
            **options,
        )

    def split_images(self, name: str) -> SplitImages:
        """Return the images of split `name`, with labels renumbered 0 … classes−1, as proxies are."""
        indices = np.flatnonzero(self.split == name)
        return SplitImages(torch.as_tensor(indices), np.unique(self.dataset.labels[indices], return_inverse=True)[1])

    @torch.inference_mode()
    def embed(self, indices: Tensor) -> Tensor:
        """Return embeddings (n, d) float32 of images[indices] on the device, in evaluation mode, not augmented.

        Raise Diverged if one of them is zero or not finite, since it cannot be scored.
        """
        self.model.eval()

        def read(batch: Tensor, each: Each) -> Any:
            return self.augmentation.load(self.images.batch(batch, self.device), None, each)

        parts = indices.split(self.embedding_batch)
        with closing(self.pipeline.run(read, self.augmentation.evaluate, parts, self.device)) as batches:
            embeddings = torch.cat([self.model(rows).float() for rows in batches])
        largest = embeddings.abs().amax(dim=1)
        if broken := int((~largest.isfinite() | (largest == 0)).sum()):
            raise Diverged(f"{broken} of {len(indices)} embeddings are zero or not finite, so nothing can be scored")
        return embeddings

    def scores(self, name: str) -> tuple[dict[str, float], dict[str, float]]:
        """Return scores and spread of a split other than the test split; ({}, {}) if the split is empty."""
        part = self.split_images(name)
        if not len(part.indices):
            return {}, {}
        embeddings = self.embed(part.indices)
        values = retrieval.evaluate(embeddings, part.labels, ks=self.scored.ks[name]).values
        return values, spread(embeddings.cpu().numpy()) if self.trial.arm.at != "floor" else {}


def decoder_problem(trial: Trial, dataset: Dataset, device: torch.device) -> str | None:
    """Return why the images of a trial cannot be decoded as it says; None if they can."""
    if trial.images.decoder == "pillow":
        return None
    if dataset.files is None:
        return f"it reads image files, which {dataset.name} does not have"
    return gpu_decoder_problem(device)


def pipeline_of(trial: Trial, pictures: Pictures, device: torch.device, processors: int) -> Pipeline:
    """Return how a trial that may use so many processors prepares its batches.

    Features lie ready in memory: copying a few rows takes less time than handing them from a thread to another.
    """
    if isinstance(pictures, Features):
        return IN_TURN
    return Pipeline.of(device, processors, trial.training.threads)


@lru_cache(maxsize=1)
def evaluator_faults() -> tuple[rules.Finding, ...]:
    """Return the faults of the evaluator (FAIR-16 to 18); checked once per process, in a few tenths of a second."""
    return rules.over_evaluator(retrieval.evaluate, conformance)


def raise_errors(findings: Sequence[rules.Finding]) -> None:
    """Raise Unfair with the findings that forbid the trial, if there are any."""
    if errors := [finding.sentence for finding in findings if finding.severity == "E"]:
        raise Unfair("\n  ".join(errors))


def split_of(dataset: Dataset, protocol: Protocol, fold: int | None = None, folds: int | None = None) -> np.ndarray:
    """Return the split (n,) of a dataset under a protocol: train, test, and validation if it selects an epoch.

    Under cross-validation, return the split of fold `fold` of 1 … `folds`.
    """
    if protocol.validation_share == 0:
        return splits.no_validation(dataset)
    if folds is not None:
        assert fold is not None  # a trial that stands for all folds has no split
        return splits.fold_validation(dataset, fold, folds)
    return splits.fair_validation(dataset, protocol.validation_share)


def scores_of(trial: Trial, dataset: Dataset, split: np.ndarray) -> scorable.Scores:
    """Return what a trial will score on a dataset under `split` (n,)."""
    return scorable.scores(dataset, split, trial.ks, PROTOCOLS[trial.protocol].reads_test)


def splits_of(dataset: Dataset, trials: Sequence[Trial]) -> Iterator[tuple[list[Trial], np.ndarray]]:
    """Yield each split (n,) that these trials of one dataset use, with the trials that score it alike.

    Raises DatasetError if the dataset cannot be split that way.
    """
    users: dict[tuple, list[Trial]] = {}
    for trial in trials:
        users.setdefault((trial.protocol, trial.fold, trial.folds, trial.ks), []).append(trial)
    for (protocol, fold, folds, _), same in users.items():
        yield same, split_of(dataset, PROTOCOLS[protocol], fold, folds)


def training_classes(trial: Trial, sources: Sources) -> int:
    """Return how many classes a trial trains on."""
    dataset = open_dataset(trial.dataset, sources.data, sources.cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
    return len(np.unique(dataset.labels[split == "train"]))
