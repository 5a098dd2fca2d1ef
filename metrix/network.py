"""Running mixed rows through a network without a trace: the clean batch sees exactly what the baseline sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils.checkpoint import checkpoint

ROWS = 256  # mixed rows that pass through the network at once; more run in chunks, recomputed in the backward pass


class _SeesOtherRows(Exception):
    """A layer that computes statistics of the whole batch was reached by a part of it."""


@contextmanager
def aside(model: nn.Module, images: Tensor, generator: torch.Generator) -> Iterator[None]:
    """Forward passes inside use their own batch statistics, update no running ones, and draw from `generator`'s fork.

    A RuntimeError names the buffers that a layer changed nevertheless.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    buffers = [(buffer, buffer._version) for buffer in model.buffers()]
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    devices = [images.device] if images.device.type == "cuda" else []
    for norm in norms:
        norm.track_running_stats = False
    try:
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
    changed = {id(buffer) for buffer, version in buffers if buffer._version != version}
    if changed:
        where = ", ".join(name for name, buffer in model.named_buffers() if id(buffer) in changed)
        raise RuntimeError(f"the mixed rows changed running statistics of the network: {where}; use at='embedding'")


def in_chunks(
    model: nn.Module, function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> Tensor:
    """function(first, second) of pair indices (m,), in memory for `ROWS` rows at a time.

    Where rows see each other (BatchNorm in train mode) they run at once, since a part has other statistics than the
    whole.
    """
    if len(first) <= ROWS:
        return function(first, second)

    def refuse(*_) -> None:
        raise _SeesOtherRows

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)]
    hooks = [norm.register_forward_pre_hook(refuse) for norm in norms]
    with suppress(_SeesOtherRows):
        try:
            parts = [
                checkpoint(function, i, j, use_reentrant=False)
                for i, j in zip(first.split(ROWS), second.split(ROWS), strict=True)
            ]
            return torch.cat(parts)
        finally:
            for hook in hooks:
                hook.remove()
    return function(first, second)


def last_stage_or(stage: str | int | None, model: nn.Module) -> tuple[str, bool]:
    """The name of a stage of the model (None: its last map) and whether it is the last; ValueError if unknown."""
    if not all(hasattr(model, method) for method in ("stages", "forward_to", "forward_from")):
        raise TypeError(
            f"at='feature' needs a model with stages(), forward_to() and forward_from(), as harness.Embedder; "
            f"{type(model).__name__} has not. at='input' and at='embedding' work with any module"
        )
    stages = model.stages()
    if stage is None:
        return stages[-1], True
    if isinstance(stage, int) and -len(stages) <= stage < len(stages):
        stage = stages[stage]
    if stage not in stages:
        raise ValueError(f"no stage {stage!r} in this network; it has {', '.join(stages)}")
    return stage, stage == stages[-1]
