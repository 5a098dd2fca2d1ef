"""A training in this benchmark against the customary loop: the same images, network, batches and steps, side by side.

The customary loop is that of pytorch-metric-learning: torchvision's transforms on JPEG files in a DataLoader's
workers, MPerClassSampler, its loss with its miner, AdamW. Both have the same processors, and on a GPU both train
under bfloat16 autocast. An epoch of either includes drawing batches, crops, flips, normalising, the network forward
and backward, the loss and the optimiser. The customary one reads and decodes its files in every epoch. The benchmark
does so once, before the first one, and also seeds every step, clips gradients and checks its losses. Validation and
checkpoints are left out of both. Epochs take turns within one run, after one of each that warms up.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import timm
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from harness.config import Arm, Backbone, Choice, Images, Model, Training, Trial
from harness.training.bench import Bench
from harness.training.pictures import Sources, images_of, open_dataset
from tests.performance._clock import wait_for
from tests.performance._pictures import photograph

AIM = 2.0  # times the customary rate, with two threads on files
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PER_CLASS, DIM, LR = 5, 128, 1e-4
ARMS = {"multi_similarity": "multi_similarity[mining=0.1]", "contrastive": "contrastive"}


def main() -> None:
    """Print images per second of both, and their ratio with and without the first decoding."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="resnet50:224" if on_gpu else "test_resnet:64,resnet18:64")
    parser.add_argument("--classes", type=int, default=100 if on_gpu else 20)
    parser.add_argument("--batch", type=int, default=100 if on_gpu else 50)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if on_gpu else 2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"images per second of a training epoch on {device}, {options.threads} threads, JPEGs of 500 x 375 px, "
        f"batches of {options.batch}, median of {options.rounds} epochs (aim at a small network: {AIM:g} or more)"
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        draw(files, options.classes, each=20)
        for network in options.networks.split(","):
            name, _, side = network.partition(":")
            for loss, arm in ARMS.items():
                trial = trial_of(name, int(side), arm, options.batch, options.threads, options.rounds + 1, on_gpu)
                compare(loss, trial, files, Path(folder), device)


def compare(loss: str, trial: Trial, files: Path, folder: Path, device: torch.device) -> None:
    """Train both ways in turn and print a line."""
    theirs, began = customary(loss, trial, files, device), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        sources = Sources(folder / "run", files, Path(cache), str(device))
        images_of(trial, open_dataset(trial.dataset, files, Path(cache)), sources)
        decoding = time.perf_counter() - began
        ours = benchmark(trial, sources)
        rates: dict[str, list[float]] = {"customary": [], "benchmark": []}
        for _ in range(trial.training.epochs):
            rates["customary"].append(rate(theirs, device))
            rates["benchmark"].append(rate(ours, device))
        ours.close()
    theirs.close()
    images = len(list((files / "train").glob("*/*")))
    usual, here = (median(rates[way][1:]) for way in rates)
    steady = median(b / a for a, b in list(zip(rates["customary"], rates["benchmark"], strict=True))[1:])
    first = images / (decoding + images / here) / usual
    print(
        f"  {trial.backbone.name} at {trial.images.side_px} px, {loss:16} customary {usual:6.0f}   benchmark "
        f"{here:6.0f}   ratio {steady:.2f}   of the first epoch, with {decoding:.1f} s of decoding, {first:.2f}"
    )


def rate(epochs: Iterator[int], device: torch.device) -> float:
    """Return images per second of the next epoch."""
    wait_for(device)
    began = time.perf_counter()
    images = next(epochs)
    wait_for(device)
    return images / (time.perf_counter() - began)


def trial_of(network: str, side_px: int, arm: str, batch: int, threads: int, epochs: int, on_gpu: bool) -> Trial:
    """Return a trial on all classes of a folder of images."""
    return Trial(
        dataset=Choice(name="folder"),
        backbone=Backbone(name=network, mean=MEAN, std=STD, interpolation="bilinear"),
        model=Model(dim=DIM),
        images=Images(side_px=side_px),
        training=Training(
            epochs=epochs,
            batch_size=batch,
            examples_per_class=PER_CLASS,
            lr=LR,
            schedule="constant",
            precision="bf16" if on_gpu else "float32",
            threads=threads,
        ),
        arm=Arm.parse(arm),
        protocol="paper",
        keep="none",
    )


def benchmark(trial: Trial, sources: Sources) -> Generator[int]:
    """Train as a trial does, without validation and checkpoints; yield the images of each epoch."""
    bench, seen = Bench.of(trial, sources), 0
    for progress in bench.train(bench.criterion(), lambda: ({}, {}), Path(sources.out), save=lambda *_: None):
        yield progress.images_seen - seen
        seen = progress.images_seen


def customary(loss: str, trial: Trial, files: Path, device: torch.device) -> Generator[int]:
    """Train as pytorch-metric-learning's examples do, on the classes of the trial; yield the images of each epoch."""
    settings, side, on_gpu = trial.training, trial.images.side_px, device.type == "cuda"
    seen = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=trial.images.crop_scale),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    dataset = ImageFolder(str(files / "train"), seen)
    sampler = MPerClassSampler(dataset.targets, PER_CLASS, settings.batch_size, len(dataset))
    loader = DataLoader(
        dataset,
        settings.batch_size,
        sampler=sampler,
        num_workers=settings.threads,
        drop_last=True,
        pin_memory=on_gpu,
        persistent_workers=True,
    )
    body = timm.create_model(trial.backbone.name, num_classes=0)
    network = nn.Sequential(body, nn.Linear(cast(int, body.num_features), DIM)).to(device).train()
    criterion, miner = objective(loss)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    while True:
        images = 0
        for pixels, classes in loader:
            pixels, classes = pixels.to(device, non_blocking=True), classes.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                embeddings = network(pixels)
            optimizer.zero_grad()
            criterion(embeddings.float(), classes, miner and miner(embeddings.float(), classes)).backward()
            optimizer.step()
            images += len(classes)
        yield images


def objective(loss: str) -> tuple[Callable[..., Tensor], Any]:
    """Return a loss of pytorch-metric-learning with the miner that goes with it, if any."""
    if loss == "contrastive":
        margins: dict[str, Any] = {"pos_margin": 1, "neg_margin": 0.5}
        return losses.ContrastiveLoss(**margins, distance=CosineSimilarity()), None
    return losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner(epsilon=0.1)


def draw(files: Path, classes: int, each: int) -> None:
    """Write `each` made photographs of each training class, and the few of a test split that a dataset must have."""
    generator = np.random.default_rng(0)
    for split, count, size in (("train", classes, each), ("test", 2, 2)):
        for c in range(count):
            (files / split / f"{split}{c:03}").mkdir(parents=True)
            for number in range(size):
                photograph(generator, 500, 375).save(files / split / f"{split}{c:03}" / f"{number}.jpg", quality=85)


if __name__ == "__main__":
    main()
