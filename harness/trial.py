"""One trial from settings to record: the composition root, the one place that sees the whole pipeline.

    data → embedder → criterion → train → select → test once → record

It knows nothing of distribution: `steps` is a generator that yields after every epoch, so a caller can watch, stop
or time it; `run_trial` drains it in this process.
"""

import hashlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import baselines
import metrix
from harness import checkpoint, datasets, retrieval, splits
from harness.cache import default_folder
from harness.config import Choice, Trial
from harness.datasets import Dataset
from harness.ledger import Ledger
from harness.loading import Augmentation, Images, open_images
from harness.models import Embedder
from harness.provenance import provenance
from harness.record import Cost, Data, Record, Run, now
from harness.selection import PROTOCOLS, select
from harness.streams import stream
from harness.train import Progress, train

EMBEDDING_BATCH = 256


@dataclass(frozen=True)
class Sources:
    """Where a trial finds its data and leaves its results; no part of what it computes."""

    out: Path
    data: Path | None = None
    cache: Path | None = None
    device: str | None = None
    grid: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Part:
    """The images of one split: their indices in the dataset and their labels."""

    indices: Tensor
    labels: np.ndarray


def run_trial(
    trial: Trial,
    out: str | Path,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    device: str | None = None,
) -> Record:
    """Run one trial in this process and return its record (the one that exists, when it is done already).

    `out` is the run folder, `data` the dataset's folder, `cache` where decoded images are kept, `device` "cpu",
    "cuda", "cuda:1", … (None: a GPU where there is one). An interrupted trial continues at its last epoch.
    """
    sources = Sources(Path(out), data and Path(data), cache and Path(cache), device)
    for _ in steps(trial, sources):
        continue
    return Run(out).record(trial)


def steps(trial: Trial, sources: Sources) -> Iterator[Progress]:
    """Run a trial, yielding its progress after each epoch; its record exists when this is exhausted."""
    run = Run(sources.out)
    if run.record(trial) is not None:
        return
    began = time.perf_counter()
    torch.set_num_threads(trial.training.threads)
    device = torch.device(sources.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    dataset = open_dataset(trial.dataset, sources.data, sources.cache)
    images = open_images(
        dataset, trial.images.cache_side_px or trial.images.side_px, sources.cache or default_folder()
    )
    split = splits.fair_validation(dataset, PROTOCOLS[trial.protocol].validation_share)
    training, validation = part(dataset, split, "train"), part(dataset, split, "validation")

    if trial.arm.loss == "pixels":
        model, embedding = nn.Flatten(), plain_pixels(trial)
    else:
        model = embedder(trial).to(device)
        embedding = augmentation(trial, model, dataset)
    progress, criterion, folder = Progress(), None, run.checkpoints(trial)

    def score(some: Part) -> dict[str, float]:
        return retrieval.evaluate(embed(model, images, some.indices, embedding, device), some.labels).values

    if trial.arm.at != "floor":
        criterion = objective(trial, int(training.labels.max()) + 1).to(device)
        drop_broken(folder, run)
        for progress in train(
            trial,
            model,
            criterion,
            images,
            training.indices,
            torch.as_tensor(training.labels),
            embedding,
            lambda: score(validation),
            folder,
            device,
        ):
            yield progress

    chosen = select(progress.curve) if progress.curve else None
    scores = progress.curve[chosen - 1].validation if chosen else score(validation)
    digest = load_best(model, folder, chosen) if chosen else checkpoint.state_digest(model.state_dict())
    test, notes = read_test_once(trial, run, dataset, images, split, model, embedding, digest, device)
    run.finish(
        Record(
            id=trial.id,
            trial=trial,
            arm=trial.arm.label,
            level=trial.arm.at,
            baseline=trial.arm.baseline,
            grid=dict(sources.grid),
            protocol={"name": trial.protocol, "version": PROTOCOLS[trial.protocol].version},
            selected_epoch=chosen,
            validation=scores,
            test=test.values,
            curve=progress.curve,
            cost=cost(trial, model, progress, time.perf_counter() - began, device),
            data=description(dataset, split, test),
            effective=getattr(criterion, "effective", {}),
            provenance={
                **provenance(),
                "device": device_name(device),
                "weights": getattr(model, "tag", None),
                "initial_weights": getattr(model, "weights_digest", None),
                "tested_weights": digest,
                "evaluator": retrieval.evaluator_digest(),
            },
            notes=notes,
            finished=now(),
        )
    )
    if trial.keep != "weights":
        checkpoint.remove(folder)


@lru_cache(maxsize=4)
def _dataset(name: str, options: tuple[tuple[str, Any], ...], data: Path | None, cache: Path | None) -> Dataset:
    return datasets.load(name, data=data, cache=cache, **dict(options))


def open_dataset(choice: Choice, data: Path | None = None, cache: Path | None = None) -> Dataset:
    """The dataset, checked; opened once in a process, whatever the number of trials it runs."""
    return _dataset(choice.name, tuple(sorted(choice.options.items())), data, cache)


def part(dataset: Dataset, split: np.ndarray, name: str) -> Part:
    """The images of split `name`, labels renumbered 0 … classes−1 (proxies are counted by them)."""
    indices = np.flatnonzero(split == name)
    return Part(torch.as_tensor(indices), np.unique(dataset.labels[indices], return_inverse=True)[1])


def embedder(trial: Trial) -> Embedder:
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
        side_px=trial.images.side_px,
        generator=generator,
    )


def objective(trial: Trial, num_classes: int) -> nn.Module:
    """The loss of a trial, in Metrix where its arm says so. Proxies depend on (seed, loss), λ on (seed, "metrix")."""
    arm, seed = trial.arm, trial.seed
    generator = torch.Generator().manual_seed(stream(seed, arm.loss, "proxies"))
    loss = baselines.create(
        arm.loss, num_classes=num_classes, dim=trial.model.dim, generator=generator, **arm.options
    )
    if arm.metrix is None:
        return loss
    generator = torch.Generator().manual_seed(stream(seed, "metrix"))
    return metrix.Metrix(loss, **arm.metrix.model_dump(), generator=generator)


def augmentation(trial: Trial, model: Embedder, dataset: Dataset) -> Augmentation:
    """Crops and flips of the trial, normalised as the weights were trained."""
    images = trial.images
    return Augmentation(
        images.side_px,
        mean=model.mean,
        std=model.std,
        interpolation=model.interpolation,
        crop_scale=images.crop_scale,
        crop_ratio=images.crop_ratio,
        flip=dataset.mirrored if images.flip == "auto" else images.flip,
    )


def plain_pixels(trial: Trial) -> Augmentation:
    """The images themselves, at the size the networks see, in [0, 1]."""
    return Augmentation(trial.images.side_px, mean=(0.0,) * 3, std=(1.0,) * 3)


@torch.inference_mode()
def embed(
    model: nn.Module, images: Images, indices: Tensor, augmentation: Augmentation, device: torch.device
) -> np.ndarray:
    """Embeddings (n, d) float32 of images[indices], in evaluation mode, without augmentation."""
    model.eval()
    parts = [
        model(augmentation.evaluate(images.batch(batch, device))).float().cpu()
        for batch in indices.split(EMBEDDING_BATCH)
    ]
    return torch.cat(parts).numpy()


def drop_broken(folder: Path, run: Run) -> None:
    """Set a checkpoint that cannot be read aside, named, so that the trial starts anew instead of failing."""
    for name in ("last.safetensors", "best.safetensors"):
        path = folder / name
        if not path.exists():
            continue
        try:
            checkpoint.load(path)
        except checkpoint.CheckpointError as error:
            run.set_aside(folder, f"{error}; the trial starts anew")
            return


def load_best(model: nn.Module, folder: Path, chosen: int) -> str:
    """Load the weights of the chosen epoch and return their digest."""
    sections, meta = checkpoint.load(folder / "best.safetensors")
    if meta["epoch"] != chosen:
        raise checkpoint.CheckpointError(f"{folder}/best.safetensors is of epoch {meta['epoch']}, not {chosen}")
    model.load_state_dict(sections["model"])
    return checkpoint.state_digest(model.state_dict())


def read_test_once(trial, run, dataset, images, split, model, embedding, digest, device):
    """The one reading of the test split: ledger, embeddings, scores, and what later readers need, kept on disk."""
    test = part(dataset, split, "test")
    fingerprint = split_fingerprint(dataset, split)
    read = Ledger(run.ledger).read(
        cell="/".join((*trial.cell, f"s{trial.seed}")),
        checkpoint=digest,
        split=fingerprint,
        evaluator=retrieval.evaluator_digest(),
    )
    embeddings = embed(model, images, test.indices, embedding, device)
    ids = np.array([dataset.keys[i] for i in test.indices])
    roles = dataset.role[test.indices.numpy()] if dataset.role is not None else None
    if roles is None:
        result = retrieval.evaluate(embeddings, test.labels, ks=dataset.ks)
        queries = ids
    else:
        asked, stock = roles == "query", roles == "gallery"
        result = retrieval.evaluate(
            embeddings[asked],
            test.labels[asked],
            ks=dataset.ks,
            gallery=embeddings[stock],
            gallery_labels=test.labels[stock],
            query_ids=ids[asked],
            gallery_ids=ids[stock],
        )
        queries = ids[asked]
    if trial.keep != "none":
        run.keep_queries(
            trial,
            embeddings=embeddings.astype(np.float16),
            ids=ids,
            labels=test.labels,
            queries=queries[result.queries],
            **{f"query {name}": values for name, values in result.per_query.items()},
            **({} if roles is None else {"roles": roles.astype(str)}),
        )
    notes = () if read.counts_once else (f"FAIR-03 test read again for {'/'.join(trial.cell)} seed {trial.seed}",)
    return result, notes


def split_fingerprint(dataset: Dataset, split: np.ndarray) -> str:
    """sha256 over sorted (image, class, split): the division that this trial really used."""
    rows = sorted(zip(dataset.keys, (dataset.class_names[i] for i in dataset.labels), split, strict=True))
    return hashlib.sha256("\n".join("\t".join(map(str, row)) for row in rows).encode()).hexdigest()


def description(dataset: Dataset, split: np.ndarray, test) -> Data:
    names = [name for name in ("train", "validation", "test") if (split == name).any()]
    return Data(
        index_fingerprint=dataset.index_fingerprint,
        pixel_fingerprint=dataset.pixel_fingerprint,
        split_fingerprint=split_fingerprint(dataset, split),
        images={name: int((split == name).sum()) for name in names},
        classes={name: len(np.unique(dataset.labels[split == name])) for name in names},
        test_queries=len(test.queries),
        test_excluded=test.excluded,
    )


def cost(trial: Trial, model: nn.Module, progress: Progress, wall_s: float, device: torch.device) -> Cost:
    """Seconds, images, forward passes: rows × the share of the network they cross ÷ batch (FAIR-07)."""
    train_s = sum(epoch.train_s for epoch in progress.curve)
    share = 0.0
    if trial.arm.metrix is not None:
        at, stage = trial.arm.metrix.at, trial.arm.metrix.stage
        share = {"input": 1.0, "embedding": 0.0}.get(
            at, model.share(stage, trial.images.side_px) if at == "feature" else 0
        )
    rows = progress.images_seen + share * progress.mixed_rows
    if device.type == "cuda":
        peak_gb = torch.cuda.max_memory_allocated(device) / 1e9
    else:
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return Cost(
        train_s=train_s,
        checkpoint_s=progress.checkpoint_s,
        wall_s=wall_s,
        images_per_s=progress.images_seen / train_s if train_s else None,
        steps=progress.steps,
        images_seen=progress.images_seen,
        forward_passes_per_step=rows / progress.images_seen if progress.images_seen else 0.0,
        peak_gb=peak_gb,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")
