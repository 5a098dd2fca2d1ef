"""Margin loss: positives are nearer and negatives farther than a learnable distance β, each by a margin.

    L = mean over non-zero terms of [ d(a,p) − β + m ]₊ and [ β − d(a,n) + m ]₊,  d = √(2 − 2s)

Wu, Manmatha, Smola, Krähenbühl, "Sampling matters in deep embedding learning", ICCV 2017. `sampling="all"`
takes all pairs; "distance" draws for each anchor and positive one negative as the paper does, with a chance inverse
to the density of distances on the sphere (at least 0.5), among those nearer than 1.4 if there are any. β is one
number, or one for each class of anchors. Deviation: no penalty ν on β.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.form import Batch, Loss, moved, one_of, within
from baselines.numerics import square_root


class Margin(Loss):
    """Margin loss; margin m ≥ 0, initial β ≥ 0 ("one" or one "per_class"), sampling "all" or "distance"."""

    title = "Margin"
    paper = "Wu et al., ICCV 2017"
    year = 2017
    kind = "tuples"
    search_space: ClassVar = {"margin": {"low": 0.05, "high": 0.5}, "beta": {"low": 0.6, "high": 1.4}}
    mixed = None
    why_no_metrix = (
        "its boundary β belongs to the anchor's class and its mean runs over the non-zero terms of the whole batch; "
        "no mixed form is published, and none is derived here"
    )
    rates: ClassVar = {"beta": 1.0}

    def __init__(
        self,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
        margin: float = 0.2,
        beta: float = 1.2,
        boundaries: str = "one",
        sampling: str = "all",
    ):
        super().__init__()
        self.margin = within("margin", margin, 0.0)
        self.sampling = one_of("sampling", sampling, ("all", "distance"))
        self.per_class = one_of("boundaries", boundaries, ("one", "per_class")) == "per_class"
        if self.per_class and num_classes is None:
            raise ValueError("boundaries='per_class' learns one number for each class, so it needs num_classes")
        shape = (num_classes,) if self.per_class and num_classes is not None else ()
        self.beta = nn.Parameter(torch.full(shape, within("beta", beta, 0.0)))
        self.generator = torch.Generator().manual_seed(torch.initial_seed() & (2**63 - 1))
        if generator is not None:
            self.generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))

    @property
    def num_classes(self) -> int | None:
        return len(self.beta) if self.per_class else None

    def clean(self, batch: Batch) -> Tensor:
        distances = square_root(2 - 2 * batch.similarities)
        positive, negative = self.sides(batch)
        beta = self.beta.to(distances.dtype)
        beta = beta[batch.labels][:, None] if self.per_class else beta
        if self.sampling == "distance":
            negative = self.sampled(distances.detach(), *self.host_sides(batch), batch.embeddings.shape[1])
        pull = (distances - beta + self.margin).relu() * positive
        push = (beta - distances + self.margin).relu()
        active = (pull > 0).sum() + (negative * (push > 0)).sum()
        return (pull.sum() + (negative * push).sum()) / active.clamp(min=1)

    def sampled(self, distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> Tensor:
        """Draw one negative for each positive pair of an anchor; return how often each pair was drawn, (n, n).

        The masks are in host memory, and so are the uniform numbers from which negatives are drawn, by inverting the
        distribution: no step waits for the device.
        """
        anchors = (positive.any(1) & negative.any(1)).nonzero().flatten()
        counts = torch.zeros_like(distances)
        if len(anchors) == 0:
            return counts
        most = int(positive.sum(1).max())
        wanted = moved(torch.arange(most) < positive[anchors].sum(1, keepdim=True), distances.device)
        uniform = torch.rand(len(anchors), most, generator=self.generator)  # in [0, 1)
        anchors, negative = moved(anchors, distances.device), moved(negative, distances.device)
        d = distances.clamp(min=0.5)
        log_chance = (2 - dim) * d.log() - (dim - 3) / 2 * (1 - d * d / 4).clamp(min=1e-8).log()
        near = negative & (distances < 1.4)
        near = torch.where(near.any(1, keepdim=True), near, negative)
        log_chance = log_chance.masked_fill(~near, -math.inf)
        until = log_chance[anchors].softmax(1).cumsum(1)
        drawn = torch.searchsorted(until, moved(uniform, distances.device) * until[:, -1:], right=True)
        drawn = drawn.clamp(max=len(distances) - 1)  # without this, distances that are not finite lead past the end
        counted = wanted & near[anchors].gather(1, drawn)  # a GPU's sums may give a chance of 0 a rounding error
        counts[anchors] = counts[anchors].scatter_add_(1, drawn, counted.to(counts.dtype))
        return counts

    def get_extra_state(self) -> Tensor:
        """Return the state of the sampling generator (uint8), for an exact resume."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore a state that `get_extra_state` returned."""
        self.generator.set_state(state.cpu())
