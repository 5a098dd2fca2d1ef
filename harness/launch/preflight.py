"""The check of a machine before it runs trials: equal versions, code, data and run folder, disk space, usable GPUs.

Each machine collects `facts` about itself; `mismatches` compares them with those of the driver's machine. How the
functions reach another machine is not decided here.
"""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from harness.config import Choice, Training, Trial
from harness.data.cache import default_folder
from harness.data.datasets import DatasetError
from harness.runs.provenance import PACKAGES, code_digest, provenance
from harness.runs.run import Run
from harness.training import checkpoint, compiled
from harness.training.pictures import Sources, open_dataset, prepare_images

LEAST_FREE_GB = 1.0  # in the run folder and the cache, for a checkpoint


@dataclass(frozen=True)
class Facts:
    """What a machine reports about itself.

    versions   of Python and of the packages that compute
    code       sha256 of the sources of the three packages
    datasets   name → fingerprint, or a sentence that begins with "error: "
    weights    file of weights → sha256, or such a sentence
    problems   what makes it unfit by itself
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
    trainings: Sequence[Training] = (),
    counted_gpus: float = 0,
) -> Facts:
    """Return the facts of this machine.

    identity      of the run folder
    weights       files of initial weights
    trainings     settings, of which some may want a compiler
    counted_gpus  GPUs of this machine, as the cluster counts them
    """
    run, cache = Run(sources.out), sources.cache or default_folder()
    problems = []
    if identity is not None and (problem := run.problem_here(identity)):
        problems.append(problem)
    problems += uncompilable(trainings, sources.device)
    visible = _gpus()
    if counted_gpus > visible and sources.device is None:
        problems.append(
            f"the cluster counts {_gpus_in_words(counted_gpus)} here, but torch sees {visible}: fix the driver, or "
            "start the node with --num-gpus=0"
        )
    for name, folder in (("run folder", run.folder), ("cache", cache)):
        try:
            free_gb = _free_gb(Path(folder))
        except OSError as error:
            problems.append(f"{name} {folder}: {error.strerror}")
            continue
        if free_gb < LEAST_FREE_GB:
            problems.append(f"{name} {folder}: {free_gb:.1f} GB free, {LEAST_FREE_GB:g} GB needed")
    return Facts(
        versions={"python": platform.python_version(), **provenance()["packages"]},
        code=code_digest(),
        datasets={choice.name: _fingerprint(choice, sources) for choice in datasets},
        problems=tuple(problems),
        weights={file: _digest(file) for file in weights},
    )


def mismatches(here: Facts, there: Facts) -> list[str]:
    """Return why trials on a machine with the facts `there` would differ from those of `here`, as sentences."""
    problems = list(there.problems)
    for name in ("python", *PACKAGES):
        old, new = here.versions.get(name), there.versions.get(name)
        if old != new:
            problems.append(f"{name} is {new} there and {old} here: install the same constraints.txt on every node")
    if here.code != there.code:
        problems.append("its metrix-bench differs from the one here: install the same revision on every node")
    for ours, theirs in ((here.datasets, there.datasets), (here.weights, there.weights)):
        for name, digest in ours.items():
            other = theirs.get(name, "error: it was not reported")
            if other.startswith("error: "):
                problems.append(f"{name}: {other.removeprefix('error: ')}")
            elif other != digest:
                problems.append(f"{name} differs: {other[:12]} there, {digest[:12]} here")
    return problems


def uncompilable(trainings: Sequence[Training], device: str | None = None) -> list[str]:
    """Return why this machine cannot compile networks as these settings want it, as sentences.

    `device` is that of the trials; None means a GPU if there is one.
    """
    if all(settings.compile == "none" for settings in trainings):
        return []
    kind = torch.device(device or ("cuda" if _gpus() else "cpu")).type
    return list(dict.fromkeys(filter(None, (compiled.problem(settings, kind) for settings in trainings))))


def least_gpu_bytes() -> int:
    """Return the memory of the smallest GPU of this machine in bytes; 0 without one."""
    return min((torch.cuda.get_device_properties(i).total_memory for i in range(_gpus())), default=0)


def _gpus() -> int:
    """Return how many GPUs torch sees here, even in a process that was given none: counting uses none of them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def prepare_here(trials: Sequence[Trial], sources: Sources) -> tuple[str, ...]:
    """Decode on this machine what these trials will need; return the sentences to note."""
    sentences: list[str] = []
    prepare_images(trials, sources, sentences.append)
    return tuple(sentences)


def _fingerprint(choice: Choice, sources: Sources) -> str:
    """Return the fingerprint of this machine's copy of a dataset, with its pixels if they are known."""
    try:
        dataset = open_dataset(choice, sources.data, sources.cache)
    except (DatasetError, OSError) as error:
        return f"error: {error}"
    return dataset.index_fingerprint + (dataset.pixel_fingerprint or "")


def _digest(file: str) -> str:
    """Return the sha256 of a file of weights, or a sentence that begins with "error: "."""
    try:
        return checkpoint.digest(file)
    except OSError as error:
        return f"error: {error.strerror}"


def _gpus_in_words(count: float) -> str:
    return f"{count:g} GPU{'s' * (count != 1)}"


def _free_gb(folder: Path) -> float:
    """Return the free space of the disk where a folder is, or would be, in GB."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9
