"""How much of a machine a trial occupies: its GPU memory is measured once, and as many share a GPU as fit.

Measured on two training steps and an evaluation batch with images of noise: what a step allocates does not depend on
what is in the images.
"""

import json
import math
import resource
from collections.abc import Mapping, Sequence

import torch

from harness.config import Resources, Trial
from harness.launch.queue import Bundle
from harness.training.bench import EMBEDDING_BATCH, build_criterion, build_embedder

HEADROOM = 1.15  # over the peak that was measured: batches of other sizes of groups, fragments
CONTEXT_BYTES = 600 * 2**20  # of a process that uses CUDA, before its first tensor
USABLE = 0.95  # of a GPU's memory: the rest is the driver's
STEPS = 2


def memory_key(trial: Trial) -> str:
    """What decides a trial's memory, as JSON: dataset, backbone, embedder, images, batch, loss and level."""
    level = trial.arm.metrix.model_dump(exclude={"weight", "alpha"}) if trial.arm.metrix else None
    content = {
        "dataset": trial.dataset.model_dump(),  # how many classes a loss learns vectors of
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
    return json.dumps(content, sort_keys=True)


def measure(trial: Trial, classes: int, device: str | None = None) -> int:
    """Bytes that a trial needs at its peak: of GPU memory, or, on a processor, of its process.

    Run it in a process of its own: a peak, once reached, stays. `classes`: how many the loss learns vectors of.
    Scoring is not measured: it takes 256 MB at a time, which the head room covers.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    if trial.arm.loss != "pixels":
        _work(trial, where, classes)
    if where.type == "cuda":
        return torch.cuda.max_memory_reserved(where) + CONTEXT_BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(trial: Trial, where: torch.device, classes: int) -> None:
    model = build_embedder(trial).to(where)
    side, settings = trial.images.side_px, trial.training
    if trial.arm.at != "floor":
        criterion = build_criterion(trial, classes).to(where).train()
        parameters = [*model.parameters(), *criterion.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        each = settings.examples_per_class if settings.sampler == "balanced" else 2
        labels = torch.arange(settings.batch_size, device=where) // each % classes
        for _ in range(STEPS):
            images = torch.rand(settings.batch_size, 3, side, side, device=where)
            with torch.autocast(where.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = criterion.objective(model.train(), images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        model.eval()(torch.rand(EMBEDDING_BATCH, 3, side, side, device=where))


def per_gpu(peak_bytes: int, total_bytes: int) -> int:
    """How many trials with this peak a GPU with this memory holds, with head room; 1 at least."""
    return max(1, math.floor(USABLE * total_bytes / (HEADROOM * peak_bytes)))


def bundles(
    trials: Sequence[Trial],
    wants: Resources,
    gpus: float,
    cpus_per_gpu: float,
    peaks: Mapping[str, int] | None = None,
    total_bytes: int = 0,
) -> dict[str, Bundle]:
    """What each trial occupies, trial id → {"CPU": …, "GPU": …}.

    A processor for each thread of each of its processes, so that trials do not fight for them. Of a GPU, what `wants`
    says; `auto` is none where there is none, and else the share that `peaks` (`memory_key` → bytes) and `total_bytes`
    allow, but never so many trials on a GPU that the `cpus_per_gpu` beside it do not suffice. Without a peak a trial
    has a GPU alone.
    """
    found = {}
    for trial in trials:
        share = wants.gpus_per_trial
        cores = max(wants.cpus_per_trial, trial.training.threads * (1 if share == "auto" else max(1, int(share))))
        if share == "auto":
            peak = (peaks or {}).get(memory_key(trial))
            fit = per_gpu(peak, total_bytes) if peak and total_bytes else 1
            fit = max(1, min(fit, int(cpus_per_gpu // cores)))
            # Ray counts GPUs in ten-thousandths; rounded down, k trials still fit.
            share = math.floor(1e4 / fit) / 1e4 if gpus else 0.0
        found[trial.id] = {"CPU": float(cores), **({"GPU": float(share)} if share else {})}
    return found


def keep_to(share: float) -> None:
    """Let this process have no more than its share of the GPU's memory, what CUDA itself takes included."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT_BYTES / total, 0.01))


def ranks(bundle: Bundle) -> int:
    """Over how many processes a trial is spread: one a GPU, where it occupies several."""
    return max(1, int(bundle.get("GPU", 0)))
