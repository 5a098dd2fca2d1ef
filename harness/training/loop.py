"""Training: one loop that knows no method by name, on batches whose every random draw is named, not remembered.

The test split is not an argument here. What the loop gets of validation is a function that scores the model.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.form import NotFinite
from harness.config import Training, Trial
from harness.data.images import Images, Originals
from harness.data.loading import Augmentation, batches
from harness.runs.record import Epoch
from harness.streams import stream
from harness.training import checkpoint, memory

CHECK_EVERY = 50  # steps between two looks at the losses: each look waits for the device


class Diverged(RuntimeError):
    """A loss or embeddings that are not finite; the message names the epoch and the step, or how many embeddings."""


@dataclass
class Progress:
    """What a run has done so far: its curve and the counts that FAIR-07 compares. A checkpoint holds it.

    `chunked`: the epoch at which memory ran out and the rows at a time since then; None while whole batches fit.
    `origin`: what this training may not change on its way (see `trial.origin_of`). `earlier_s`: what attempts
    before this one took, as far as a checkpoint tells; this one began at `began` on the clock `time.perf_counter`.
    `devices`: what attempts ran on, each once, in order.
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
    began: float = field(default_factory=lambda: time.perf_counter())

    @property
    def epoch(self) -> int:
        """The last epoch that has ended; 0 before the first."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def wall_s(self) -> float:
        """Seconds that all attempts took until now."""
        return self.earlier_s + time.perf_counter() - self.began

    def note_peak(self, gb: float | None) -> None:
        """Take in the peak of this attempt so far; None, not known, stays."""
        self.peak_gb = None if None in (gb, self.peak_gb) else max(gb, self.peak_gb)

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of it; see `resumed`."""
        content = {**vars(self), "curve": [epoch.model_dump() for epoch in self.curve], "earlier_s": self.wall_s}
        del content["began"]
        return content

    def resumed(self, content: Mapping[str, Any]) -> "Progress":
        """The progress of a checkpoint, continued by this new attempt."""
        curve = [Epoch(**epoch) for epoch in content["curve"]]
        found = Progress(**{**content, "curve": curve, "began": self.began})
        found.chunked = found.chunked or self.chunked
        found.earlier_s = max(found.earlier_s, self.earlier_s)
        found.note_peak(self.peak_gb)
        found.devices = list(dict.fromkeys([*found.devices, *self.devices]))
        return found


def save(
    folder: Path,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    now: Progress,
    choose: Callable[[Sequence[Epoch]], int],
) -> None:
    """The state to resume from first, then the chosen weights where they are those of this epoch.

    In this order an epoch whose weights were kept is never repeated: `train` makes the chosen weights again from the
    state where a crash came between the two.
    """
    learnt = {"model": model.state_dict(), "criterion": criterion.state_dict()}
    checkpoint.save(folder / "last.safetensors", {**learnt, "optimizer": optimizer.state_dict()}, now.content())
    if choose(now.curve) == now.epoch:
        checkpoint.save(folder / "best.safetensors", learnt, {"epoch": now.epoch})


def train(
    trial: Trial,
    model: nn.Module,
    criterion: nn.Module,
    images: Images | Originals,
    indices: Tensor,
    labels: Tensor,
    augmentation: Augmentation,
    validate: Callable[[], tuple[dict[str, float], dict[str, float]]],
    choose: Callable[[Sequence[Epoch]], int],
    folder: Path,
    device: torch.device,
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
    save: Callable[..., None] = save,
    fresh: Progress | None = None,
) -> Iterator[Progress]:
    """Train `model` under `criterion` on images[indices] with `labels` (n,) in 0 … classes−1; yield after each epoch.

    Continues from `folder`/last.safetensors where it exists, bit for bit on the CPU with the same thread count, and
    leaves the weights of the epoch that `choose` takes from the curve in `folder`/best.safetensors. `validate` gives
    the scores and the spread of the validation embeddings; the curve begins with those before the first step.
    `criterion` has `objective(model, images, labels) -> scalar`. When it continues, the state it continues from is
    yielded first. `backward` leaves the gradients of a loss, `save` keeps what an epoch gave; `fresh` is the progress
    of a training that has just begun. Raises Diverged when the loss stops being finite.
    """
    settings = trial.schedule
    groups = [{"params": list(model.parameters()), "lr": settings.lr}, *criterion.parameter_groups(settings.lr)]
    optimizer = OPTIMIZERS[settings.optimizer](groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    base = [group["lr"] for group in optimizer.param_groups]
    progress = _resume(folder, model, criterion, optimizer, fresh or Progress())
    if progress.curve:
        if choose(progress.curve) == progress.epoch:
            save(folder, model, criterion, optimizer, progress, choose)  # the last attempt may have died half way
        yield progress
    else:
        progress.curve.append(_validated(validate, epoch=0, loss=None, lr=0.0, train_s=0.0))
    for epoch in range(progress.epoch + 1, settings.epochs + 1):
        began, scale = time.perf_counter(), step_size(settings, epoch)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * scale
        model.train()
        criterion.train()
        model.freeze_backbone(epoch <= settings.warmup_epochs)
        losses = torch.zeros(len(labels) // settings.batch_size, device=device)
        for step, (pixels, classes) in enumerate(_shown(trial, epoch, images, indices, labels, augmentation, device)):
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
        save(folder, model, criterion, optimizer, progress, choose)
        progress.checkpoint_s += time.perf_counter() - saving
        yield progress


def _validated(validate: Callable[[], tuple[dict[str, float], dict[str, float]]], **known: Any) -> Epoch:
    """An epoch of which all but the validation is known."""
    began = time.perf_counter()
    scores, extent = validate()
    return Epoch(**known, validation=scores, spread=extent, validation_s=time.perf_counter() - began)


def _shown(
    trial: Trial,
    epoch: int,
    images: Images | Originals,
    indices: Tensor,
    labels: Tensor,
    augmentation: Augmentation,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the network is shown in an epoch: augmented images and classes, batch by batch; the same for every arm.

    Every random stream is seeded again for each step, also that of torch (dropout, drop-path). So no earlier draw of
    an arm can move it, and a resumed trial needs no state of a generator.
    """
    settings, name = trial.schedule, (trial.dataset.name, trial.backbone.name)
    generator = torch.Generator(device)
    plan = batches(
        labels.numpy(),
        batch_size=settings.batch_size,
        sampler=settings.sampler,
        examples_per_class=settings.examples_per_class,
        seed_of_epoch=stream(trial.seed, *name, "batches", epoch),
    )
    for step, batch in enumerate(map(torch.as_tensor, plan)):
        torch.manual_seed(stream(trial.seed, *name, "step", epoch, step))
        generator.manual_seed(stream(trial.seed, *name, "augmentation", epoch, step))
        yield augmentation.train(images.batch(indices[batch], device), generator), labels[batch].to(device)


def _step(
    settings: Training,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    classes: Tensor,
    backward: Callable[[Tensor], None],
) -> Tensor | float:
    """One step on one batch; its loss, NaN where the embeddings are no numbers any more."""
    try:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = criterion.objective(model, pixels, classes)
    except NotFinite:
        return math.nan  # the losses are looked at soon; until then nothing is updated
    optimizer.zero_grad(set_to_none=True)
    backward(loss)
    if settings.clip_value is not None:
        for group in optimizer.param_groups:
            nn.utils.clip_grad_value_(group["params"], settings.clip_value)
    optimizer.step()
    return loss.detach()


def step_size(settings: Training, epoch: int) -> float:
    """The factor on every learning rate in `epoch` (from 1): constant, step (γ each `step_epochs`) or cosine."""
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
    last = f"the last finite loss was {losses[step - 1].item():.6g}" if step else "no loss before it in this epoch"
    raise Diverged(f"the loss is {losses[step].item()} at epoch {epoch}, step {step + 1}; {last}")


def _resume(
    folder: Path, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, fresh: Progress
) -> Progress:
    if not (folder / "last.safetensors").exists():
        return fresh
    sections, meta = checkpoint.load(folder / "last.safetensors")
    model.load_state_dict(sections["model"])
    criterion.load_state_dict(sections["criterion"])
    optimizer.load_state_dict(sections["optimizer"])
    return fresh.resumed(meta)
