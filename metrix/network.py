"""Run mixed rows through a network without side effects: the clean batch sees exactly what the baseline sees."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] (torch leaves it untyped)

# torch names these base classes with an underscore, but has no public test for "any batch norm".
_BatchNorm = batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
_NormBase = batchnorm._NormBase  # pyright: ignore[reportPrivateUsage]

ROWS = 256  # mixed rows that pass through the network at once; more run in chunks, recomputed in the backward pass


class Staged(Protocol):
    """A network that can be entered at its feature maps; `harness.Embedder` is one."""

    def stages(self) -> tuple[str, ...]:
        """Return the names of the feature maps, in the order of the forward pass."""
        ...

    def forward_to(self, stage: str, images: Tensor) -> Tensor:
        """Return the feature maps of images at a stage."""
        ...

    def forward_from(self, stage: str, maps: Tensor) -> Tensor:
        """Return the embeddings (n, d) of feature maps of a stage."""
        ...

    def forward_joint(self, stage: str, images: Tensor, mix: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of images and those of mix(maps), both from one pass after the stage."""
        ...


class _SeesOtherRows(Exception):
    """Raised when a part of a batch reaches a layer that computes statistics of the whole batch."""


@contextmanager
def isolated(model: nn.Module, images: Tensor, generator: torch.Generator) -> Generator[None]:
    """Let forward passes inside use their own batch statistics, update no running ones, and draw from a fork.

    The fork of torch's random numbers is seeded from `generator`. Raise a RuntimeError that names the buffers that a
    layer changed nevertheless.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    buffers = [(name, buffer, buffer._version) for name, buffer in model.named_buffers()]
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = [images.device] if images.device.type == "cuda" else []
    for norm in norms:
        norm.track_running_stats = False
    try:
        with torch.random.fork_rng(devices):  # pyright: ignore[reportUnknownMemberType] (torch leaves it untyped)
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
    changed = [name for name, buffer, version in buffers if buffer._version != version]
    if changed:
        raise RuntimeError(
            f"the mixed rows changed running statistics of the network: {', '.join(changed)}; use at='embedding'"
        )


def mix(rows: Tensor, first: Tensor, second: Tensor, lam: float | Tensor) -> Tensor:
    """Return λ·rows[first] + (1−λ)·rows[second] in the type of the rows; λ is one number, or one for each pair."""
    if isinstance(lam, Tensor):  # at least float32, even if maps are bfloat16
        lam = lam.to(torch.promote_types(rows.dtype, torch.float32)).view(-1, *[1] * (rows.ndim - 1))
    return (rows[first] * lam + rows[second] * (1 - lam)).to(rows.dtype)


def in_chunks(
    model: nn.Module, function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> Tensor:
    """Return function(first, second) of pair indices (m,), with `ROWS` rows in memory at a time.

    If rows see each other (BatchNorm in train mode), they all run at once, because a part has other statistics than
    the whole.
    """
    if len(first) <= ROWS:
        return function(first, second)

    def refuse(*_: Any) -> None:
        raise _SeesOtherRows

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)]
    hooks = [norm.register_forward_pre_hook(refuse) for norm in norms]
    with suppress(_SeesOtherRows):
        try:
            slices = [slice(k, k + ROWS) for k in range(0, len(first), ROWS)]
            return torch.cat(
                [checkpoint(function, first[rows], second[rows], use_reentrant=False) for rows in slices]
            )
        finally:
            for hook in hooks:
                hook.remove()
    return function(first, second)


def staged(model: nn.Module | None) -> Staged:
    """Return the model if it has stages; otherwise raise a TypeError."""
    if not all(hasattr(model, method) for method in ("stages", "forward_to", "forward_from")):
        raise TypeError(
            f"at='feature' needs a model with stages(), forward_to() and forward_from(), as harness.Embedder; "
            f"{type(model).__name__} has not. at='input' and at='embedding' work with any module"
        )
    return cast(Staged, model)


def find_stage(stage: str | int | None, model: Staged) -> tuple[str, bool]:
    """Return the name of a stage of the model (None: its last) and whether it is the last; ValueError if unknown.

    A model may know more stages than it lists: `resolve_stage(stage)`, if it has that method, returns their names.
    """
    stages = model.stages()
    if stage is None:
        return stages[-1], True
    if resolve := getattr(model, "resolve_stage", None):
        name = cast(str, resolve(stage))
        return name, name == stages[-1]
    if isinstance(stage, int) and -len(stages) <= stage < len(stages):
        stage = stages[stage]
    if not isinstance(stage, str) or stage not in stages:
        raise ValueError(f"no stage {stage!r} in this network; it has {', '.join(stages)}")
    return stage, stage == stages[-1]
