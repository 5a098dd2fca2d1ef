"""Proxy-anchor loss: one learnable proxy for each class is the anchor, the examples of the batch are its candidates.

    L = (1/|C⁺|) Σ_c log(1 + Σ_{x∈c} e^{−α(s(c,x) − δ)})  +  (1/|C|) Σ_c log(1 + Σ_{x∉c} e^{α(s(c,x) + δ)})

Kim, Kim, Cho, Kwak, "Proxy anchor loss for deep metric learning", CVPR 2020, eq. 4; C⁺ are the classes of the batch.
The proxies are normalised, and learn 100 times faster than the network, as in the authors' code.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, proxies, within
from baselines.weights import Weights


class ProxyAnchor(Loss):
    """Proxy-anchor loss; scale α > 0, margin δ in [0, 2]."""

    title = "Proxy-anchor"
    paper = "Kim et al., CVPR 2020"
    year = 2020
    kind = "proxies"
    search_space: ClassVar = {"alpha": {"low": 8.0, "high": 64.0, "log": True}, "delta": {"low": 0.0, "high": 0.5}}
    anchors = "proxies"
    rates: ClassVar = {"proxies": 100.0}
    exponential = True

    def __init__(
        self,
        num_classes: int,
        dim: int,
        generator: torch.Generator | None = None,
        alpha: float = 32.0,
        delta: float = 0.1,
    ):
        super().__init__()
        self.alpha = within("alpha", alpha, above=0.0)
        self.delta = within("delta", delta, 0.0, 2.0)
        self.proxies = proxies(num_classes, dim, generator)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        attract = positive.log_sum_exp(similarities, slope=-self.alpha, centre=self.delta, plus_one=True)
        repel = negative.log_sum_exp(similarities, slope=self.alpha, centre=-self.delta, plus_one=True)
        # `clean` takes the mean over all proxies; the attraction is a mean over those with positives only.
        attracted = positive.any().sum().clamp(min=1)
        return attract * len(similarities) / attracted + repel
