"""The command that runs a trial again: the grid that it came from, and whatever was set otherwise."""

import functools
import json
import shlex
from typing import Any

from harness.config import Trial
from harness.errors import GridError
from harness.grid import Grid
from harness.grids import shipped


def command(trial: Trial, grid: str) -> tuple[str, bool]:
    """The command for one trial of a grid, and whether it gives this very trial.

    It does where the grid ships, in the version that ran, and every other setting can be given with --set. A grid of
    one's own is named as a file, which only its owner can check.
    """
    overrides = _overrides(trial, grid)
    name = grid if grid in shipped() else f"{grid}.yaml"
    words = ["metrix-bench", "trial", name, "--datasets", trial.dataset.name, "--backbones", trial.backbone.name]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--arm", trial.arm.label, *(["--fold", str(trial.fold)] if trial.fold else [])]
    words += ["--seed", str(trial.seed)]  # the last word: a page leaves it out of the command of a row
    return " ".join(map(shlex.quote, words)), _found(trial, grid, overrides) == trial


def _overrides(trial: Trial, grid: str) -> tuple[str, ...]:
    """`key=value` of every setting in which the trial differs from the same cell of the grid as it ships."""
    twin = _found(trial, grid, ())
    if twin is None:
        return ()
    own, other = (_leaves(t.model_dump(mode="json", include=_SETTABLE)) for t in (trial, twin))
    return tuple(f"{key}={_plain(own[key])}" for key in own if own[key] != other.get(key))


_SETTABLE = {"model", "images", "training", "protocol", "keep", "folds", "ks"}


def _found(trial: Trial, grid: str, overrides: tuple[str, ...]) -> Trial | None:
    """The trial of the shipped grid, so changed, that has the cell, the seed and the fold of this one."""
    twin = _cells(grid, overrides).get(trial.cell)
    return twin and twin.model_copy(update={"seed": trial.seed, "fold": trial.fold})


@functools.lru_cache(maxsize=64)
def _cells(grid: str, overrides: tuple[str, ...]) -> dict[tuple[str, str, str], Trial]:
    if grid not in shipped():
        return {}
    try:
        return {trial.cell: trial for trial in Grid.load(grid, overrides).trials()}
    except GridError:
        return {}


def _leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
