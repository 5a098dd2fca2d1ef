"""Build the command that reruns a trial from its grid and the settings that were overridden."""

import functools
import json
import shlex
from typing import Any

from harness.config import Trial
from harness.errors import GridError
from harness.grid import Grid
from harness.grids import shipped


def command(trial: Trial, grid: str) -> tuple[str, bool]:
    """Return the command for one trial of a grid, and whether it gives exactly this trial.

    It does if the grid is shipped in the version that ran and --set can express every other setting. A custom grid is
    named as a file, which only its owner can check.
    """
    overrides = _overrides(trial, grid)
    name = grid if grid in shipped() else f"{grid}.yaml"
    words = ["metrix-bench", "trial", name, "--datasets", trial.dataset.name, "--backbones", trial.backbone.name]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--arm", trial.arm.label, *(["--fold", str(trial.fold)] if trial.fold else [])]
    words += ["--seed", str(trial.seed)]  # must be last: the page removes it from the command of a row
    return " ".join(map(shlex.quote, words)), _matching_trial(trial, grid, overrides) == trial


def _overrides(trial: Trial, grid: str) -> tuple[str, ...]:
    """Return `key=value` for every setting that differs from the same cell of the shipped grid."""
    shipped_trial = _matching_trial(trial, grid, ())
    if shipped_trial is None:
        return ()
    own, other = (_leaves(t.model_dump(mode="json", include=_SETTABLE)) for t in (trial, shipped_trial))
    return tuple(f"{key}={_plain(own[key])}" for key in own if own[key] != other.get(key))


_SETTABLE = {"model", "images", "training", "protocol", "keep", "folds", "ks"}


def _matching_trial(trial: Trial, grid: str, overrides: tuple[str, ...]) -> Trial | None:
    """Return the trial of the shipped grid, with overrides, for the same cell, seed and fold; None without one."""
    shipped_trial = _cells(grid, overrides).get(trial.cell)
    return shipped_trial and shipped_trial.model_copy(update={"seed": trial.seed, "fold": trial.fold})


@functools.lru_cache(maxsize=64)
def _cells(grid: str, overrides: tuple[str, ...]) -> dict[tuple[str, str, str], Trial]:
    if grid not in shipped():
        return {}
    try:
        return {trial.cell: trial for trial in Grid.load(grid, overrides).trials()}
    except GridError:
        return {}


def _leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
