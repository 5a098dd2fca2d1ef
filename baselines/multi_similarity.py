"""Multi-similarity loss: soft counts of the positives that are too far and of the negatives that are too near.

    ℓ(a) = (1/β) log(1 + Σ_p e^{−β(s(a,p) − m)})  +  (1/γ) log(1 + Σ_n e^{γ(s(a,n) − m)})

Wang, Han, Huang, Dong, Scott, "Multi-similarity loss with general pair weighting for deep metric learning", CVPR
2019, eq. 15 (α, β, λ there are β, γ, m here). Deviation: the pair mining of the paper is off by default; `mining`
is its ε, on similarities, and applies to the clean loss only: keep n if s(a,n) > min_p s(a,p) − ε, and p if s(a,p) <
max_n s(a,n) + ε.
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Batch, Loss, within
from baselines.weights import Weights, log_mask


class MultiSimilarity(Loss):
    """Multi-similarity loss; β and γ > 0, margin m in [−1, 1], mining ε ≥ 0 or None for no mining."""

    title = "Multi-similarity"
    paper = "Wang et al., CVPR 2019"
    year = 2019
    tuned_on = "CUB-200-2011 by Musgrave et al. 2020"
    search_space: ClassVar = {
        "beta": {"low": 1.0, "high": 80.0, "log": True},
        "gamma": {"low": 10.0, "high": 100.0, "log": True},
        "margin": {"low": 0.0, "high": 1.0},
    }
    exponential = True

    def __init__(self, beta: float = 18.0, gamma: float = 75.0, margin: float = 0.77, mining: float | None = None):
        super().__init__()
        self.beta = within("beta", beta, above=0.0)
        self.gamma = within("gamma", gamma, above=0.0)
        self.margin = within("margin", margin, -1.0, 1.0)
        self.mining = mining if mining is None else within("mining", mining, 0.0)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        attract = positive.log_sum_exp(similarities, slope=-self.beta, centre=self.margin, plus_one=True)
        repel = negative.log_sum_exp(similarities, slope=self.gamma, centre=self.margin, plus_one=True)
        return attract / self.beta + repel / self.gamma

    def labelled(self, batch: Batch) -> tuple[Weights, Weights]:
        if self.mining is None:
            return super().labelled(batch)
        s = batch.similarities.detach()
        positive, negative = self.sides(batch)
        farthest = s.masked_fill(~positive, float("inf")).amin(1, keepdim=True)
        nearest = s.masked_fill(~negative, float("-inf")).amax(1, keepdim=True)
        hard_positive, hard_negative = s < nearest + self.mining, s > farthest - self.mining
        return (
            Weights(log_mask(positive & hard_positive, s.dtype), 1.0, s.shape),
            Weights(log_mask(negative & hard_negative, s.dtype), 1.0, s.shape),
        )
