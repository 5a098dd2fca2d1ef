"""What every machine that runs trials must have: the same versions, code, data and run folder, room, usable GPUs.

A machine states `facts` about itself; `mismatches` compares them with those of the driver's machine. Nothing here
knows how a function reaches another machine.
"""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from harness.config import Choice, Trial
from harness.data.cache import default_folder
from harness.data.datasets import DatasetError
from harness.runs.provenance import PACKAGES, code_digest, provenance
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training.trial import Sources, open_dataset, prepare_images

LEAST_FREE_GB = 1.0  # in the run folder and the cache: a checkpoint has to fit


@dataclass(frozen=True)
class Facts:
    """What a machine says of itself.

    versions   of Python and of whatever computes
    code       sha256 over the sources of the three packages
    datasets   name → fingerprint, or a sentence that begins with "error: "
    weights    file of weights → sha256, or such a sentence
    problems   what makes it unfit whatever other machines say
    """

    versions: dict[str, str]
    code: str
    datasets: dict[str, str]
    problems: tuple[str, ...]
    weights: dict[str, str] = field(default_factory=dict)


def facts(
    datasets: Sequence[Choice],
    sources: Sources,
    identity: str | None = None,
    weights: Sequence[str] = (),
    counted_gpus: float = 0,
) -> Facts:
    """The facts of this machine.

    `identity` is the run folder's, `weights` are the files of weights that trials begin with, `counted_gpus` is what
    the cluster believes.
    """
    run, cache = Run(sources.out), sources.cache or default_folder()
    problems = []
    if identity is not None and (wrong := run.problem_here(identity)):
        problems.append(wrong)
    visible = _gpus()
    if counted_gpus > visible and sources.device is None:
        problems.append(
            f"the cluster counts {counted_gpus:g} GPUs here and torch sees {visible}: fix the driver, or start the "
            "node with --num-gpus=0"
        )
    for name, folder in (("run folder", run.folder), ("cache", cache)):
        try:
            free_gb = _free_gb(Path(folder))
        except OSError as error:
            problems.append(f"{name} {folder}: {error.strerror}")
            continue
        if free_gb < LEAST_FREE_GB:
            problems.append(f"{name} {folder}: {free_gb:.1f} GB free, at least {LEAST_FREE_GB:g} GB are needed")
    return Facts(
        versions={"python": platform.python_version(), **provenance()["packages"]},
        code=code_digest(),
        datasets={choice.name: _fingerprint(choice, sources) for choice in datasets},
        problems=tuple(problems),
        weights={file: _digest(file) for file in weights},
    )


def mismatches(here: Facts, there: Facts) -> list[str]:
    """Why trials on a machine with the facts `there` would not be those of `here`; one sentence each."""
    found = list(there.problems)
    for name in ("python", *PACKAGES):
        old, new = here.versions.get(name), there.versions.get(name)
        if old != new:
            found.append(f"{name} is {new} there and {old} here: install the same constraints.txt on every node")
    if here.code != there.code:
        found.append("its metrix-bench is another one than here: install the same revision on every node")
    for which, asked, what in (
        (here.datasets, there.datasets, "another copy"),
        (here.weights, there.weights, "another file"),
    ):
        for name, known in which.items():
            told = asked.get(name, "error: nothing was said of it")
            if told.startswith("error: "):
                found.append(f"{name}: {told.removeprefix('error: ')}")
            elif told != known:
                found.append(f"{name} is {what} there ({told[:12]}) than here ({known[:12]})")
    return found


def least_gpu_bytes() -> int:
    """The memory of the smallest GPU of this machine, in bytes; 0 without one."""
    return min((torch.cuda.get_device_properties(i).total_memory for i in range(_gpus())), default=0)


def _gpus() -> int:
    """How many GPUs torch sees here, also from a process that was given none: looking takes nothing from trials."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def prepare_here(trials: Sequence[Trial], sources: Sources) -> tuple[str, ...]:
    """Decode on this machine what these trials will need; what was said while doing it."""
    said: list[str] = []
    prepare_images(trials, sources, said.append)
    return tuple(said)


def _fingerprint(choice: Choice, sources: Sources) -> str:
    """The fingerprint of a dataset as this machine has it, pixels included where they are known."""
    try:
        dataset = open_dataset(choice, sources.data, sources.cache)
    except (DatasetError, OSError) as error:
        return f"error: {error}"
    return dataset.index_fingerprint + (dataset.pixel_fingerprint or "")


def _digest(file: str) -> str:
    """The sha256 of a file of weights."""
    try:
        return checkpoint.digest(file)
    except OSError as error:
        return f"error: {error.strerror}"


def _free_gb(folder: Path) -> float:
    """Free disk where a folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9
