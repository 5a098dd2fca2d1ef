"""Count what training steps really did, so that a method that silently did nothing can be seen in its record."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn


class Counted(nn.Module):
    """A module that takes the mean of some counts over its training steps.

    A subclass names them in `counts` and calls `count` once in each step. The totals are a buffer: they stay on the
    device, so that a step does not wait for it, and they are in the checkpoints.
    """

    counts: ClassVar[tuple[str, ...]] = ()
    totals: Tensor

    def __init__(self):
        super().__init__()
        if self.counts:
            totals = torch.zeros(1 + len(self.counts), dtype=torch.float64)
            self.register_buffer("totals", totals)  # the steps, then the sum of each count

    def count(self, *values: float | Tensor) -> None:
        """Add the counts of one training step, in the order of `counts`; nothing outside of training."""
        if self.training:
            self.totals[0] += 1
            for place, value in enumerate(values, 1):
                # A loss without parameters may be left on the CPU while its batches are on a GPU.
                self.totals[place] += value.detach().to(self.totals.device) if isinstance(value, Tensor) else value

    def means(self) -> dict[str, float]:
        """Return the mean of each count over the training steps until now; {} before the first step."""
        if not self.counts:
            return {}
        steps, *sums = cast(list[float], self.totals.tolist())  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
        return {name: total / steps for name, total in zip(self.counts, sums, strict=True)} if steps else {}

    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each of `means` that says the training was not what its name promises."""
        return ()
