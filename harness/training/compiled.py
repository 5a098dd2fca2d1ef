"""torch.compile of a backbone in training: where it works, and how its batches reach it.

The backbone is compiled in place, so parameters, state dicts and checkpoints are those of the plain network. Pooling,
head and loss run as they are. So does every pass outside training: scores depend on the weights alone.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from harness.config import Training
from harness.data.cache import default_folder
from harness.training.embedder import Embedder

COMPILING_S = 1800.0
FOLDER, THREADS = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"


def problem(settings: Training, device: str) -> str | None:
    """Return why this machine cannot compile a network for a type of device; None if it can, or need not."""
    if settings.compile == "none":
        return None
    which = f"training.compile is {settings.compile}, but"
    if device != "cuda":
        if settings.compile == "cuda_graphs":
            return f"{which} the trial runs on {device}, which has no CUDA graphs: choose network or none"
        wanted = (os.environ.get("CXX") or "g++",)
    elif find_spec("triton") is None:
        return f"{which} torch cannot compile for a GPU without triton: pip install triton, or choose none"
    else:
        wanted = (os.environ.get("CC") or "gcc", "clang")
    if not any(map(shutil.which, wanted)):
        return f"{which} there is no compiler {' or '.join(wanted)} on the PATH: install one, or choose none"
    return None


def limit_s(trainings: Sequence[Training], epoch_timeout_s: float) -> float:
    """Return the time limit of an epoch in seconds: half an hour more if one of these settings compiles."""
    return epoch_timeout_s + (COMPILING_S if any(settings.compile != "none" for settings in trainings) else 0.0)


def prepare(settings: Training, cache: Path | None) -> None:
    """Let torch keep what it compiles in the cache folder, and use no more processes than the trial has threads.

    Variables of torch that the user sets win.
    """
    default = os.path.join(tempfile.gettempdir(), "torchinductor_")  # torch itself sets the variable, when imported
    if os.environ.get(FOLDER, default).startswith(default):
        os.environ[FOLDER] = str((cache or default_folder()).resolve() / "compiled")
    if THREADS not in os.environ:
        from torch._inductor import config  # takes seconds

        config.compile_threads = settings.threads


def compile_backbone(model: Embedder, settings: Training) -> None:
    """Compile the backbone of a model in place, as `settings.compile` says; what was compiled before is forgotten.

    torch stops compiling a function after a few versions, and other trials of this process must not use them up.

    All batches have one number of rows, which is compiled for itself and, with `cuda_graphs`, replayed as CUDA
    graphs. Other numbers of rows, such as those of mixed images, share a second version. In both, torch draws the
    random numbers of dropout and drop-path that it draws without compiling.
    """
    if settings.compile == "none":
        return
    torch.compiler.reset()
    plain, graphs = model.backbone.forward_features, settings.compile == "cuda_graphs"
    batches = torch.compile(plain, dynamic=False, options={"fallback_random": True, "triton.cudagraphs": graphs})
    others = torch.compile(plain, options={"fallback_random": True})

    def run(images: Tensor) -> Tensor:
        if len(images) == settings.batch_size:
            return batches(images)
        maybe_mark_dynamic(images, 0)
        return others(images)

    from torch._dynamo import maybe_mark_dynamic  # takes seconds

    model.compiled = run
