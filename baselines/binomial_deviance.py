"""Binomial deviance loss: logistic costs of the pairs, averaged separately over positives and negatives.

    ℓ(a) = (1/|P|) Σ_p log(1 + e^{−β(s(a,p) − m)})  +  (1/|N|) Σ_n log(1 + e^{γ(s(a,n) − m)})

Yi, Lei, Li, "Deep metric learning for practical person re-identification", arXiv 1407.4979, with the cost of
negatives as a steeper slope γ. In a mixed set |P| counts the labels above 0 and |N| those below 1; an empty side is
0.
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Loss, within
from baselines.numerics import softplus
from baselines.weights import Weights


class BinomialDeviance(Loss):
    """Binomial deviance loss; slopes β and γ > 0, margin m in [−1, 1]."""

    title = "Binomial deviance"
    paper = "Yi et al., ICPR 2014"
    year = 2014
    search_space: ClassVar = {
        "beta": {"low": 0.5, "high": 10.0, "log": True},
        "gamma": {"low": 5.0, "high": 100.0, "log": True},
        "margin": {"low": 0.0, "high": 0.9},
    }

    def __init__(self, beta: float = 2.0, gamma: float = 40.0, margin: float = 0.5):
        super().__init__()
        self.beta = within("beta", beta, above=0.0)
        self.gamma = within("gamma", gamma, above=0.0)
        self.margin = within("margin", margin, -1.0, 1.0)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        attract = positive.sum(softplus(similarities, -self.beta, self.margin))
        repel = negative.sum(softplus(similarities, self.gamma, self.margin))
        return attract / positive.count().clamp(min=1) + repel / negative.count().clamp(min=1)
