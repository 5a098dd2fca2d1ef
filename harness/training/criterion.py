"""The objective of a trial: its loss, in the levels of its arm, from the inside outwards."""

from collections.abc import Iterator
from typing import Any

import torch

import baselines
import metrix
from baselines.counts import Counted
from baselines.form import Loss
from harness.config import Trial
from harness.streams import stream
from harness.training import pml
from metrix import rivals
from metrix.rivals._form import Rival

Criterion = Loss | metrix.Metrix | Rival | pml.LibraryLoss


def build_criterion(trial: Trial, num_classes: int, images: int | None = None) -> Criterion:
    """Build the objective of a trial on so many training classes and images (None: unknown).

    Proxies depend on (seed, loss), the random numbers of Metrix on (seed, "metrix"), and those of a rival on (seed,
    its name).
    """
    arm, seed = trial.arm, trial.seed
    generator = torch.Generator().manual_seed(stream(seed, arm.loss, "proxies"))
    sizes: dict[str, Any] = {"num_classes": num_classes, "dim": trial.model.dim, "generator": generator}
    create = pml.create if arm.loss.startswith(pml.PREFIX) else baselines.create
    criterion: Any = create(arm.loss, **sizes, **arm.options)
    if rival := arm.rival:
        options = rival.options if images is None else rivals.find(rival.at).fitted(rival.options, images)
        generator = torch.Generator().manual_seed(stream(seed, rival.at))
        criterion = rivals.create(rival.at, criterion, generator=generator, **options)
    if arm.metrix:
        generator = torch.Generator().manual_seed(stream(seed, "metrix"))
        criterion = metrix.Metrix(criterion, **arm.metrix.model_dump(), generator=generator)
    return criterion


def layers(criterion: Criterion) -> Iterator[Criterion]:
    """Yield an objective and what it is around, from the outside; the last is the loss."""
    yield criterion
    if isinstance(criterion, metrix.Metrix | Rival):
        yield from layers(criterion.loss)


def loss_of(criterion: Criterion) -> Loss | None:
    """Return the loss of `baselines` inside an objective; None for a loss of another library."""
    *_, loss = layers(criterion)
    return loss if isinstance(loss, Loss) else None


def effective(criterion: Criterion, model: torch.nn.Module) -> dict[str, Any]:
    """Return the settings that those of the arm resolve to: of Metrix by their names, of a rival as `xbm.size`."""
    settings: dict[str, Any] = {}
    for layer in layers(criterion):
        if isinstance(layer, metrix.Metrix):
            settings |= layer.effective(model)
        elif isinstance(layer, Rival):
            settings |= {f"{_name(layer)}.{key}": value for key, value in layer.effective(model).items()}
    return settings


def counted(criterion: Criterion) -> dict[str, float]:
    """Return the means of what was counted in training steps, such as `simix.virtual_rows`."""
    return {
        f"{_name(layer)}.{key}": value
        for layer in layers(criterion)
        if isinstance(layer, Counted)
        for key, value in layer.means().items()
    }


def warnings(criterion: Criterion) -> tuple[str, ...]:
    """Return a sentence for each count that says the training was not what the arm's name promises."""
    return tuple(
        sentence for layer in layers(criterion) if isinstance(layer, Counted) for sentence in layer.warnings()
    )


def _name(layer: Counted) -> str:
    return type(layer).__module__.rpartition(".")[2]
