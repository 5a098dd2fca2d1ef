"""Where a piece runs: the device, the data, how large everything is, and where results go."""

import os
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageDraw, ImageFont

from harness.config import Arm, Backbone, Choice, Images, Model, Training, Trial
from harness.runs.record import Record
from harness.runs.run import Run
from harness.training.pictures import Sources
from harness.training.trial import steps
from tests.performance._clock import Spread
from tests.performance._pictures import photograph

SIGNS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # of which two make a drawn class
MARGIN_S = 3.0  # before its time limit a piece begins nothing new


@dataclass(frozen=True)
class Sizes:
    """All sizes: `CARD` on a GPU, `STAND_IN` on a processor that replaces one."""

    networks: tuple[str, str, str]  # a ResNet, a vision transformer, an EfficientNet
    side_px: int
    batch: int
    steps: int  # of an epoch that is timed
    epochs: int  # timed, after one that warms up
    rounds: int
    repeat: int  # calls in a round
    losses: tuple[str, ...] | None  # whose values are compared; None is all
    timed_losses: tuple[str, ...]
    loss_batches: tuple[int, ...]
    dim: int
    gallery: int  # embeddings that are scored
    epoch_images: int
    test_images: int
    few: tuple[int, int]  # classes and images a class of all trials but the fine-tuned ones, at most
    drawn_px: tuple[int, int]  # width and height of drawn pictures
    tuned_epochs: int
    tuned_seeds: int


CARD = Sizes(
    networks=("resnet50", "vit_small_patch16_224", "tf_efficientnet_lite0"),
    side_px=224,
    batch=100,
    steps=20,
    epochs=3,
    rounds=7,
    repeat=10,
    losses=None,
    timed_losses=("contrastive", "multi_similarity", "proxy_anchor"),
    loss_batches=(100, 400),
    dim=512,
    gallery=60_502,  # the test split of Stanford Online Products
    epoch_images=5_864,  # of CUB-200-2011, training and test
    test_images=5_924,
    few=(60, 20),
    drawn_px=(500, 375),
    tuned_epochs=5,
    tuned_seeds=3,
)
STAND_IN = Sizes(
    networks=("test_resnet", "test_vit", "test_efficientnet"),
    side_px=32,
    batch=10,
    steps=2,
    epochs=1,
    rounds=2,
    repeat=1,
    losses=("contrastive", "soft_triple"),
    timed_losses=("contrastive",),
    loss_batches=(10, 20),
    dim=16,
    gallery=300,
    epoch_images=30,
    test_images=20,
    few=(20, 7),
    drawn_px=(64, 48),
    tuned_epochs=1,
    tuned_seeds=1,
)


@dataclass
class Place:
    """What a piece is given.

    device: the GPU, or the processor that stands in for it.
    scratch: a folder for everything that need not be kept.
    out: the folder of results.
    given: photographs, a folder with one folder a class or a zip of one; None: pictures are drawn.
    weights: a file of weights, named after its timm network.
    note: called with what was measured, its value, unit and spread, as soon as it is known.
    ends: when the piece is ended, by the clock `time.monotonic`.
    """

    device: torch.device
    scratch: Path
    out: Path
    given: Path | None = None
    weights: Path | None = None
    note: Callable[..., None] = print
    ends: float = float("inf")
    sizes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = STAND_IN if self.stand_in else CARD

    @property
    def stand_in(self) -> bool:
        """Return whether a processor replaces a GPU."""
        return self.device.type == "cpu"

    @property
    def cores(self) -> int:
        """Return how many cores a piece may use; on a processor they are shared."""
        return 1 if self.stand_in else len(os.sched_getaffinity(0))

    @property
    def left_s(self) -> float:
        """Return the seconds in which new work may still start."""
        return self.ends - MARGIN_S - time.monotonic()

    @property
    def cache(self) -> Path:
        """Return the folder of decoded images."""
        return self.scratch / "cache"

    @cached_property
    def data(self) -> Path:
        """Return the folder of images, one folder per class: the given one, unpacked from a zip, or drawn."""
        if self.given is not None and self.given.is_dir():
            return self.given
        folder = self.scratch / "data"
        if not folder.is_dir():
            aside = self.scratch / "data.part"
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was ended while it wrote
            if self.given is None:
                draw(aside, *self.sizes.few, *self.sizes.drawn_px)
            else:
                with zipfile.ZipFile(self.given) as packed:
                    packed.extractall(aside)
            aside.rename(folder)
        return folder

    @cached_property
    def few(self) -> Path:
        """Return the first images of the first classes, so that times do not depend on the amount of data."""
        classes, each = self.sizes.few
        folder, aside = self.scratch / "few", self.scratch / "few.part"
        if not folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            for path in [path for path in sorted(self.data.glob("[!.]*")) if path.is_dir()][:classes]:
                (aside / path.name).mkdir(parents=True)
                for file in sorted(path.glob("[!.]*"))[:each]:
                    (aside / path.name / file.name).symlink_to(file.resolve())
            aside.rename(folder)
        return folder

    @property
    def sampler(self) -> str:
        """Balanced batches where the training classes (two fifths of all) suffice for five images of each."""
        classes = 2 / 5 * len(list(self.few.iterdir()))
        return "balanced" if 5 * classes >= self.sizes.batch else "shuffle"

    def measured(self, what: str, unit: str, values: Sequence[float]) -> None:
        """Note the median of several rounds, with minimum and maximum."""
        spread = Spread.of(values)
        self.note(what, spread.median, unit, spread=(spread.least, spread.most), rounds=spread.rounds)

    def backbone(self, name: str) -> Backbone:
        """Return a network, with the given weights if they fit it."""
        own = self.weights is not None and self.weights.stem == name
        return Backbone(name=name, pretrained=str(self.weights) if own else False)

    def small(self, arm: str = "contrastive", seed: int = 0, epochs: int = 3, **images: Any) -> Trial:
        """Return a trial of a few seconds: a tiny network on images of 32 px."""
        return Trial(
            dataset=Choice(name="folder"),
            backbone=Backbone(name="test_resnet"),
            model=Model(dim=32),
            images=Images(side_px=32, **{"crop_scale": (0.6, 1.0), **images}),
            training=Training(epochs=epochs, batch_size=20, lr=1e-4, schedule="constant", threads=self.cores),
            arm=Arm.parse(arm),
            keep="none",
            seed=seed,
        )

    def large(self, network: str, arm: str = "contrastive", seed: int = 0, path: str = "cache", **training) -> Trial:
        """Return a trial of the size of benchmarks: images of 224 px, batches of 100, bfloat16."""
        settings = {"epochs": 1, "batch_size": self.sizes.batch, "lr": 1e-4, "schedule": "constant", **training}
        settings["sampler"] = self.sampler
        return Trial(
            dataset=Choice(name="folder"),
            backbone=self.backbone(network),
            model=Model(dim=self.sizes.dim, norm="frozen"),
            images=Images(side_px=self.sizes.side_px, path=path),
            training=Training(**settings, precision="bf16", threads=self.cores),
            arm=Arm.parse(arm),
            keep="none",
            seed=seed,
        )

    def sources(self, run: str, device: str | torch.device | None = None, **others: Any) -> Sources:
        """Where a trial finds a part of the data, with its run folder `run` among the scratch files."""
        others = {"data": self.few, "cache": self.cache, "device": str(device or self.device), **others}
        return Sources(self.scratch / run, **others)

    def run(self, trial: Trial, run: str, device: str | torch.device | None = None, **others: Any) -> Record:
        """Run a trial in the run folder `run` and return its record."""
        sources = self.sources(run, device, **others)
        for _ in steps(trial, sources):
            continue
        return Run(sources.out).record(trial)


def losses_of(record: Record) -> list[float]:
    """Return the losses of a record's training epochs, in order."""
    return [epoch.loss for epoch in record.curve if epoch.loss is not None]


def draw(folder: Path, classes: int, each: int, width: int, height: int) -> None:
    """Draw `each` JPEG pictures of each of so many classes: two characters, turned, on a made photograph."""
    font = ImageFont.load_default(size=height // 2)

    def draw_class(c: int) -> None:
        name = SIGNS[c % len(SIGNS)] + SIGNS[7 * c // len(SIGNS) % len(SIGNS)]
        (folder / name).mkdir(parents=True)
        generator = np.random.default_rng(c)
        for i in range(each):
            size = (width, height) if i % 2 else (height, width)
            picture = photograph(generator, *size)
            where = tuple(generator.uniform(0.3, 0.7) * extent for extent in size)
            ImageDraw.Draw(picture).text(where, name, font=font, anchor="mm", fill="white", stroke_width=2)
            picture.rotate(generator.uniform(-20, 20)).save(folder / name / f"{i:04}.jpg", quality=85)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(draw_class, range(classes)))
