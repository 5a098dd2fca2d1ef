"""Contrastive loss on cosine similarities: pull every positive, push every negative above the margin.

    ℓ(a) = Σ_p −s(a,p)  +  Σ_n [s(a,n) − m]₊

Hadsell, Chopra, LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006, in the weighting form
of Wang et al., CVPR 2019. `reduction="sum"` is this formula to the letter. `reduction="mean"` divides the
positive sum by the number of candidates with y > 0. It divides the negative sum by the number of negatives (y = 0)
above the margin plus the number of mixed labels (0 < y < 1). So both sums of a mixed set have the same divisor, and λ
keeps its meaning. Each divisor is at least 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, one_of, within
from baselines.weights import Weights, weighted_sum


class Contrastive(Loss):
    """Contrastive loss; margin m in [−1, 1], reduction "mean" or "sum"."""

    title = "Contrastive"
    paper = "Hadsell et al., CVPR 2006"
    year = 2006
    search_space: ClassVar = {"margin": {"low": 0.0, "high": 0.9}}

    def __init__(self, margin: float = 0.5, reduction: str = "mean"):
        super().__init__()
        self.margin = within("margin", margin, -1.0, 1.0)
        self.reduction = one_of("reduction", reduction, ("mean", "sum"))

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        attract = -positive.sum(similarities)
        above = (similarities - self.margin).relu()
        repel = negative.sum(above)
        if self.reduction == "sum":
            return attract + repel
        mixed = positive.present & negative.present
        active = torch.where(mixed, 1.0, above.detach().sign())
        counted = weighted_sum(negative.present.to(active.dtype), active)
        return attract / positive.count().clamp(min=1) + repel / counted.clamp(min=1)
