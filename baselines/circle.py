"""Circle loss: every similarity is weighted by how far it is from its own optimum.

    ℓ(a) = softplus( log Σ_p e^{−γα_p(s(a,p) − Δ_p)}  +  log Σ_n e^{γα_n(s(a,n) − Δ_n)} ),
    α_p = [1 + m − s]₊,  α_n = [s + m]₊,  Δ_p = 1 − m,  Δ_n = m,  no gradient through α

Sun, Cheng, Zhang, Zhang, Zheng, Wang, Wei, "Circle loss: a unified perspective of pair similarity optimization", CVPR
2020, with the paper's m and γ for fine-grained retrieval. An anchor without a positive or without a negative
contributes 0.
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Loss, within
from baselines.numerics import softplus
from baselines.weights import Weights

_ONE_SIDE = "all its mixed examples have the same label, so for every anchor one of the logarithms is of an empty sum"


class Circle(Loss):
    """Circle loss; margin m in [−1, 1], scale γ > 0."""

    title = "Circle"
    paper = "Sun et al., CVPR 2020"
    year = 2020
    search_space: ClassVar = {
        "margin": {"low": 0.0, "high": 0.6},
        "gamma": {"low": 16.0, "high": 256.0, "log": True},
    }
    refused_pairs: ClassVar = {"pos-pos": _ONE_SIDE, "neg-neg": _ONE_SIDE}

    def __init__(self, margin: float = 0.4, gamma: float = 80.0):
        super().__init__()
        self.margin = within("margin", margin, -1.0, 1.0)
        self.gamma = within("gamma", gamma, above=0.0)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        s, m = similarities, self.margin
        from_positive = (1 + m - s.detach()).relu() * (s - (1 - m))
        from_negative = (s.detach() + m).relu() * (s - m)
        attract = positive.log_sum_exp(from_positive, slope=-self.gamma)
        return softplus(attract + negative.log_sum_exp(from_negative, slope=self.gamma))
