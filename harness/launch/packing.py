"""The resources that a trial occupies: its GPU memory is measured once, and as many trials share a GPU as fit.

Memory is measured on two training steps and an evaluation batch of noise images, since it does not depend on what
the images show.
"""

import json
import math
import resource
from collections.abc import Mapping, Sequence

import torch

from harness.config import PIXELS, Resources, Trial
from harness.launch.queue import Bundle
from harness.training.compiled import compile_backbone
from harness.training.criterion import build_criterion, layers
from harness.training.embedder import Embedder
from harness.training.network import on_noise
from harness.training.pictures import EMBEDDING_BATCH
from metrix.rivals._form import Rival

HEADROOM = 1.15  # over the measured peak, for other group sizes in a batch and for fragmentation
CONTEXT_BYTES = 600 * 2**20  # of a process with CUDA, before its first tensor
USABLE = 0.95  # of a GPU's memory; the driver needs the rest
STEPS = 2


def memory_key(trial: Trial) -> str:
    """Return what determines a trial's memory, as JSON: dataset, network, images, batch, loss and level."""
    level = trial.arm.metrix.model_dump(exclude={"weight", "alpha"}) if trial.arm.metrix else None
    content = {
        "dataset": trial.dataset.model_dump(),  # its number of classes: a loss may learn a vector for each
        "loss": [trial.arm.loss, trial.arm.options],
        "backbone": trial.backbone.name,
        "options": trial.backbone.options,
        "model": trial.model.model_dump(),
        "side_px": trial.images.side_px,
        "batch_size": trial.training.batch_size,
        "examples_per_class": trial.training.examples_per_class,
        "sampler": trial.training.sampler,
        "precision": trial.training.precision,
        "optimizer": trial.training.optimizer,
        "level": level,
    }
    if trial.training.compile != "none":
        content["compile"] = trial.training.compile
    if trial.arm.rival:
        content["rival"] = trial.arm.rival.model_dump()
    return json.dumps(content, sort_keys=True)


def measure(trial: Trial, classes: int, device: str | None = None) -> int:
    """Return the peak memory of a trial in bytes: on a GPU, or of its process on a processor.

    Call it in a new process, because a peak never decreases. `classes`: the number of training classes. Scoring is
    not measured: it takes 256 MB at a time, which the headroom covers.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    if trial.arm.loss != PIXELS:
        _work(trial, where, classes)
    if where.type == "cuda":
        return torch.cuda.max_memory_reserved(where) + CONTEXT_BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(trial: Trial, where: torch.device, classes: int) -> None:
    model, row = on_noise(trial)
    model, settings = model.to(where), trial.training
    if trial.arm.at != "floor":
        criterion = build_criterion(trial, classes).to(where).train()
        for layer in layers(criterion):
            if isinstance(layer, Rival):
                layer.start()
        if isinstance(model, Embedder):
            compile_backbone(model, settings)
        parameters = [*model.parameters(), *criterion.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        each = settings.examples_per_class if settings.sampler == "balanced" else 2
        labels = torch.arange(settings.batch_size, device=where) // each % classes
        for _ in range(STEPS):
            images = torch.rand(settings.batch_size, *row, device=where)
            with torch.autocast(where.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = criterion.objective(model.train(), images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        model.eval()(torch.rand(EMBEDDING_BATCH, *row, device=where))


def per_gpu(peak_bytes: int, total_bytes: int) -> int:
    """Return how many trials with this peak fit on a GPU with this memory, with headroom; at least 1."""
    return max(1, math.floor(USABLE * total_bytes / (HEADROOM * peak_bytes)))


def bundles(
    trials: Sequence[Trial],
    wants: Resources,
    gpus: float,
    cpus_per_gpu: float,
    peaks: Mapping[str, int] | None = None,
    total_bytes: int = 0,
) -> dict[str, Bundle]:
    """Return what each trial occupies: trial id → {"CPU": …, "GPU": …}.

    It gets one processor for each thread of each of its processes, so that trials do not compete for them. Its share
    of a GPU is the one in `wants`. If that is `auto`, it follows from `peaks` (`memory_key` → bytes) and
    `total_bytes`, but no more trials share a GPU than the `cpus_per_gpu` allow; a trial without a peak gets a whole
    GPU, and without GPUs the share is 0.
    """
    occupied = {}
    for trial in trials:
        share = wants.gpus_per_trial
        cores = max(wants.cpus_per_trial, trial.training.threads * (1 if share == "auto" else max(1, int(share))))
        if share == "auto":
            peak = (peaks or {}).get(memory_key(trial))
            fit = per_gpu(peak, total_bytes) if peak and total_bytes else 1
            fit = max(1, min(fit, int(cpus_per_gpu // cores)))
            # Ray counts GPUs in ten-thousandths; rounding down keeps k trials on one.
            share = math.floor(1e4 / fit) / 1e4 if gpus else 0.0
        occupied[trial.id] = {"CPU": float(cores), **({"GPU": float(share)} if share else {})}
    return occupied


def keep_to(share: float) -> None:
    """Limit this process to its share of the GPU's memory, including what CUDA itself takes."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT_BYTES / total, 0.01))


def ranks(bundle: Bundle) -> int:
    """Return over how many processes a trial is divided: one for each GPU if it occupies several."""
    return max(1, int(bundle.get("GPU", 0)))
