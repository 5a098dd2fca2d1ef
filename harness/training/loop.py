"""The training loop: it knows no method by name, and every random number comes from a named seed.

The test split is not an argument. For validation the loop gets a function that scores the model.
"""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from baselines.form import NotFinite
from harness.config import Training, Trial
from harness.data.loading import Each, batches
from harness.runs.record import Epoch
from harness.streams import stream
from harness.training import checkpoint, memory
from harness.training.embedder import Network
from harness.training.pipeline import IN_TURN, Pipeline
from harness.training.seeding import seed_torch

CHECK_EVERY = 50  # steps between two checks of the losses: each check waits for the device


class Diverged(RuntimeError):
    """Raised if losses or embeddings are not finite; the message names epoch and step, or counts the embeddings."""


@dataclass
class Progress:
    """What a training has done so far: its curve, and the counts that FAIR-07 compares. Stored in checkpoints.

    chunked    the epoch at which memory ran out, and the rows at a time since then; None while whole batches fit
    origin     what must not change during this training (see `origin.origin_of`)
    earlier_s  seconds of earlier attempts, as far as checkpoints record them
    devices    the devices of all attempts, each once, in order
    saved      the last epoch that a checkpoint contains; 0 before the first
    began      when this attempt began, on the clock `time.perf_counter`
    """

    curve: list[Epoch] = field(default_factory=list)
    steps: int = 0
    images_seen: int = 0
    mixed_rows: int = 0
    checkpoint_s: float = 0.0
    chunked: tuple[int, int] | None = None
    origin: dict[str, str] = field(default_factory=dict)
    earlier_s: float = 0.0
    peak_gb: float | None = 0.0
    devices: list[str] = field(default_factory=list)
    saved: int = 0
    began: float = field(default_factory=lambda: time.perf_counter())

    @property
    def epoch(self) -> int:
        """Return the last finished epoch; 0 before the first."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def wall_s(self) -> float:
        """Return the seconds of all attempts until now."""
        return self.earlier_s + time.perf_counter() - self.began

    def note_peak(self, gb: float | None) -> None:
        """Update the peak with that of this attempt (GB); None means unknown and stays."""
        self.peak_gb = None if gb is None or self.peak_gb is None else max(gb, self.peak_gb)

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint stores of it; see `resumed`."""
        content = {**vars(self), "curve": [epoch.model_dump() for epoch in self.curve], "earlier_s": self.wall_s}
        del content["began"]
        return content

    def resumed(self, content: Mapping[str, Any]) -> "Progress":
        """Return the progress of a checkpoint, continued by this new attempt."""
        curve = [Epoch(**epoch) for epoch in content["curve"]]
        progress = Progress(**{**content, "curve": curve, "began": self.began})
        progress.chunked = progress.chunked or self.chunked
        progress.earlier_s = max(progress.earlier_s, self.earlier_s)
        progress.note_peak(self.peak_gb)
        progress.devices = list(dict.fromkeys([*progress.devices, *self.devices]))
        return progress


class Inputs(Protocol):
    """What a network sees of a dataset: images, or the features of a frozen backbone."""

    def batch(self, indices: Tensor, device: torch.device) -> Any: ...


class Transform(Protocol):
    """What turns a batch of `Inputs` into the rows that the network gets, in training and in tests.

    `load` does what may be done ahead and elsewhere: in a thread, and on a GPU beside its training.
    """

    def load(self, batch: Any, generator: torch.Generator | None, each: Each, /) -> Any: ...
    def train(self, batch: Any, generator: torch.Generator, /) -> Tensor: ...
    def evaluate(self, batch: Any, /) -> Tensor: ...


class Objective(Protocol):
    """What the loop needs of a loss, plain or mixed: an `nn.Module` with an objective.

    Labels are on the CPU, so that what follows from them is known without a wait for the device.
    """

    mixed_rows: int

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor: ...
    def parameter_groups(self, lr: float) -> list[dict[str, Any]]: ...
    def train(self, mode: bool = True) -> Any: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


Learned = dict[str, Mapping[str, Any]]  # the states of a network and its objective


def save(
    folder: Path,
    model: nn.Module,
    criterion: Objective,
    optimizer: torch.optim.Optimizer,
    now: Progress,
    choose: Callable[[Sequence[Epoch]], int],
    unsaved: Learned | None = None,
) -> None:
    """Save the state to resume from, then the weights of the chosen epoch if it is this one or is `unsaved`.

    `unsaved` is what an earlier epoch had learned that was chosen and not saved; the state contains it too. In this
    order an epoch whose weights were saved is never repeated. If a crash came between the two files, `train` saves
    the chosen weights again from the state.
    """
    now.saved, chosen, learned = now.epoch, choose(now.curve), _learned(model, criterion)
    state = {**learned, "optimizer": optimizer.state_dict()}
    if chosen != now.epoch and unsaved:
        state["chosen"] = learned = unsaved
    checkpoint.save(folder / "last.safetensors", state, now.content())
    if chosen == now.epoch or unsaved:
        checkpoint.save(folder / "best.safetensors", learned, {"epoch": chosen})


def _learned(model: nn.Module, criterion: Objective) -> Learned:
    return {"model": model.state_dict(), "criterion": criterion.state_dict()}


def train(
    trial: Trial,
    model: Network,
    criterion: Objective,
    images: Inputs,
    indices: Tensor,
    labels: Tensor,
    augmentation: Transform,
    validate: Callable[[], tuple[dict[str, float], dict[str, float]]],
    choose: Callable[[Sequence[Epoch]], int],
    folder: Path,
    device: torch.device,
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
    save: Callable[..., None] = save,
    save_every_s: float = 0.0,
    fresh: Progress | None = None,
    pipeline: Pipeline = IN_TURN,
) -> Iterator[Progress]:
    """Train `model` under `criterion` on images[indices] with `labels` (n,) in 0 … classes−1; yield after each epoch.

    Continues from `folder`/last.safetensors if it exists, bit for bit on the CPU with the same thread count, and then
    first yields the state it continues from. The weights of the epoch that `choose` selects from the curve are saved
    in `folder`/best.safetensors. `validate` returns scores and spread of the validation embeddings; the curve starts
    with those before the first step. `criterion` has `objective(model, images, labels) -> scalar`. `backward`
    computes the gradients of a loss, `save` saves an epoch, `fresh` is the progress of a new training, and `pipeline`
    prepares batches ahead. No thread of it is left when an epoch has ended, in whatever way.

    The first and the last epoch of an attempt are saved, and any that ends `save_every_s` seconds or more after the
    last save. So a crash loses no more than these seconds and the running epoch; 0 saves every epoch.

    Raises Diverged if the loss is not finite.
    """
    settings = trial.schedule
    groups = [{"params": list(model.parameters()), "lr": settings.lr}, *criterion.parameter_groups(settings.lr)]
    optimizer = OPTIMIZERS[settings.optimizer](groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    base = [group["lr"] for group in optimizer.param_groups]
    progress, unsaved = _resume(folder, model, criterion, optimizer, fresh or Progress())
    if progress.curve:
        if unsaved or choose(progress.curve) == progress.epoch:
            # The last attempt may have stopped between the two files.
            save(folder, model, criterion, optimizer, progress, choose, unsaved)
            unsaved = None
        yield progress
    else:
        progress.curve.append(_validated(validate, epoch=0, loss=None, lr=0.0, train_s=0.0))
    saved_at = -math.inf
    for epoch in range(progress.epoch + 1, settings.epochs + 1):
        began, scale = time.perf_counter(), step_size(settings, epoch)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * scale
        model.train()
        criterion.train()
        model.freeze_backbone(epoch <= settings.warmup_epochs)
        losses = torch.zeros(len(labels) // settings.batch_size, device=device)
        shown = _batches(trial, epoch, images, indices, labels, augmentation, device, pipeline)
        with closing(shown):
            for step, (pixels, classes) in enumerate(shown):
                losses[step] = _step(settings, model, criterion, optimizer, pixels, classes, backward)
                progress.mixed_rows += criterion.mixed_rows
                progress.images_seen += len(classes)
                if (step + 1) % CHECK_EVERY == 0 or step + 1 == len(losses):
                    _require_finite(losses[: step + 1], epoch)
        progress.steps += len(losses)
        known = {"epoch": epoch, "loss": losses.mean().item(), "lr": settings.lr * scale}
        progress.curve.append(_validated(validate, **known, train_s=time.perf_counter() - began))
        progress.note_peak(memory.peak_gb(device))
        saving = time.perf_counter()
        if epoch == settings.epochs or saving - saved_at >= save_every_s:
            save(folder, model, criterion, optimizer, progress, choose, unsaved)
            unsaved, saved_at = None, time.perf_counter()
        elif choose(progress.curve) == epoch:
            unsaved = copy.deepcopy(_learned(model, criterion))
        progress.checkpoint_s += time.perf_counter() - saving
        yield progress


def _validated(validate: Callable[[], tuple[dict[str, float], dict[str, float]]], **known: Any) -> Epoch:
    """Return an epoch, after validating it."""
    began = time.perf_counter()
    scores, extent = validate()
    return Epoch(**known, validation=scores, spread=extent, validation_s=time.perf_counter() - began)


def _batches(
    trial: Trial,
    epoch: int,
    images: Inputs,
    indices: Tensor,
    labels: Tensor,
    augmentation: Transform,
    device: torch.device,
    pipeline: Pipeline,
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield augmented images and their classes (on the CPU), batch by batch, for one epoch; the same for every arm.

    Every random stream is seeded again for each step, including torch's own (dropout, drop-path). So draws of an arm
    cannot affect later steps, a resumed trial needs no generator state, and a batch may be augmented at any time.
    """
    settings, name = trial.schedule, (trial.dataset.name, trial.backbone.name)
    plan = batches(
        labels.numpy(),
        batch_size=settings.batch_size,
        sampler=settings.sampler,
        examples_per_class=settings.examples_per_class,
        seed_of_epoch=stream(trial.seed, *name, "batches", epoch),
    )

    def read(step: int, each: Each) -> tuple[Any, torch.Generator, Tensor]:
        chosen = torch.as_tensor(plan[step])
        generator = torch.Generator(device).manual_seed(stream(trial.seed, *name, "augmentation", epoch, step))
        loaded = augmentation.load(images.batch(indices[chosen], device), generator, each)
        return loaded, generator, labels[chosen]

    def finish(batch: tuple[Any, torch.Generator, Tensor]) -> tuple[Tensor, Tensor]:
        loaded, generator, classes = batch
        return augmentation.train(loaded, generator), classes

    with closing(pipeline.run(read, finish, range(len(plan)), device)) as finished:
        for step, (pixels, classes) in enumerate(finished):
            seed_torch(stream(trial.seed, *name, "step", epoch, step), device)
            yield pixels, classes


def _step(
    settings: Training,
    model: Network,
    criterion: Objective,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    classes: Tensor,
    backward: Callable[[Tensor], None],
) -> Tensor | float:
    """Train on one batch and return its loss, NaN if the embeddings are not finite."""
    try:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = criterion.objective(model, pixels, classes)
    except NotFinite:
        return math.nan  # the losses are checked soon; until then nothing is updated
    optimizer.zero_grad(set_to_none=True)
    backward(loss)
    if settings.clip_value is not None:
        for group in optimizer.param_groups:
            nn.utils.clip_grad_value_(group["params"], settings.clip_value)
    optimizer.step()
    return loss.detach()


def step_size(settings: Training, epoch: int) -> float:
    """Return the factor on learning rates in `epoch` (from 1): constant, step (γ every `step_epochs`) or cosine."""
    if settings.schedule == "step":
        return settings.gamma ** ((epoch - 1) // settings.step_epochs)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs))
    return 1.0


OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def _require_finite(losses: Tensor, epoch: int) -> None:
    finite = losses.isfinite()
    if finite.all():
        return
    step = int((~finite).nonzero()[0])
    last = f"the last finite loss was {losses[step - 1].item():.6g}" if step else "it is the first loss of this epoch"
    raise Diverged(f"the loss is {losses[step].item()} at epoch {epoch}, step {step + 1}; {last}")


def _resume(
    folder: Path, model: nn.Module, criterion: Objective, optimizer: torch.optim.Optimizer, fresh: Progress
) -> tuple[Progress, Learned | None]:
    """Load the last state, if there is one; return its progress, and the chosen weights that it contains."""
    if not (folder / "last.safetensors").exists():
        return fresh, None
    sections, meta = checkpoint.load(folder / "last.safetensors")
    model.load_state_dict(sections["model"])
    criterion.load_state_dict(sections["criterion"])
    optimizer.load_state_dict(sections["optimizer"])
    return fresh.resumed(meta), sections.get("chosen")
