"""Training: one loop that knows no method by name, on batches whose every random draw is named, not remembered.

The test split is not an argument here. What the loop gets of validation is a function that scores the model.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.form import NotFinite
from harness import checkpoint
from harness.config import Training, Trial
from harness.images import Images, Originals
from harness.loading import Augmentation, batches
from harness.record import Epoch
from harness.streams import stream

CHECK_EVERY = 50  # steps between two looks at the losses: each look waits for the device


class Diverged(RuntimeError):
    """A loss that is not finite; the message names the epoch, the step and the last finite value."""


@dataclass
class Progress:
    """What a run has behind it: its curve and the counts that FAIR-07 compares. Resumed with the checkpoint."""

    curve: list[Epoch] = field(default_factory=list)
    steps: int = 0
    images_seen: int = 0
    mixed_rows: int = 0
    checkpoint_s: float = 0.0


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
) -> Iterator[Progress]:
    """Train `model` under `criterion` on images[indices] with `labels` (n,) in 0 … classes−1; yield after each epoch.

    Continues from `folder`/last.safetensors where it exists, bit for bit on the CPU with the same thread count, and
    leaves the weights of the epoch that `choose` takes from the curve in `folder`/best.safetensors. `validate` gives
    the scores and the spread of the validation embeddings. `criterion` has
    `objective(model, images, labels) -> scalar`. When it continues, the state it continues from is yielded first.
    Raises Diverged when the loss stops being finite.
    """
    settings, name = trial.schedule, (trial.dataset.name, trial.backbone.name)
    groups = [{"params": list(model.parameters()), "lr": settings.lr}, *criterion.parameter_groups(settings.lr)]
    optimizer = OPTIMIZERS[settings.optimizer](groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    base = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    progress = _resume(folder, model, criterion, optimizer)
    labels, generator = labels.to(device), torch.Generator(device)
    if progress.curve:
        yield progress
    for epoch in range(len(progress.curve) + 1, settings.epochs + 1):
        began, scale = time.perf_counter(), step_size(settings, epoch)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * scale
        model.train()
        criterion.train()
        model.freeze_backbone(epoch <= settings.warmup_epochs)
        plan = batches(
            labels.cpu().numpy(),
            batch_size=settings.batch_size,
            sampler=settings.sampler,
            examples_per_class=settings.examples_per_class,
            seed_of_epoch=stream(trial.seed, *name, "batches", epoch),
        )
        losses = torch.zeros(len(plan), device=device)
        for step, batch in enumerate(map(torch.as_tensor, plan)):
            torch.manual_seed(stream(trial.seed, *name, "step", epoch, step))
            generator.manual_seed(stream(trial.seed, *name, "augmentation", epoch, step))
            pixels = augmentation.train(images.batch(indices[batch], device), generator)
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    loss = criterion.objective(model, pixels, labels[batch])
            except NotFinite:
                losses[step] = torch.nan
                _require_finite(losses[: step + 1], epoch)
                raise
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_value is not None:
                nn.utils.clip_grad_value_(parameters, settings.clip_value)
            optimizer.step()
            losses[step] = loss.detach()
            progress.mixed_rows += criterion.mixed_rows
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == len(plan):
                _require_finite(losses[: step + 1], epoch)
        train_s, checked = time.perf_counter() - began, time.perf_counter()
        progress.steps += len(plan)
        progress.images_seen += sum(map(len, plan))
        scores, extent = validate()
        validation_s = time.perf_counter() - checked
        progress.curve.append(
            Epoch(
                epoch=epoch,
                loss=losses.mean().item(),
                lr=settings.lr * scale,
                validation=scores,
                train_s=train_s,
                validation_s=validation_s,
                spread=extent,
            )
        )
        saving = time.perf_counter()
        _save(folder, model, criterion, optimizer, progress, choose)
        progress.checkpoint_s += time.perf_counter() - saving
        yield progress


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


def _save(
    folder: Path,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    now: Progress,
    choose: Callable[[Sequence[Epoch]], int],
) -> None:
    """The chosen weights first, then the state to resume from: a crash between the two repeats the epoch, no more."""
    epoch = now.curve[-1].epoch
    if choose(now.curve) == epoch:
        checkpoint.save(folder / "best.safetensors", {"model": model.state_dict()}, {"epoch": epoch})
    meta = {**vars(now), "curve": [e.model_dump() for e in now.curve]}
    sections = {"model": model.state_dict(), "criterion": criterion.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.save(folder / "last.safetensors", sections, meta)


def _resume(folder: Path, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    if not (folder / "last.safetensors").exists():
        return Progress()
    sections, meta = checkpoint.load(folder / "last.safetensors")
    model.load_state_dict(sections["model"])
    criterion.load_state_dict(sections["criterion"])
    optimizer.load_state_dict(sections["optimizer"])
    return Progress(**{**meta, "curve": [Epoch(**e) for e in meta["curve"]]})
