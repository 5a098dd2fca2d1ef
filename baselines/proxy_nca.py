"""Proxy-NCA: an example against one learnable proxy for each class, without its own proxy in the denominator.

    ℓ(a) = −log( e^{2s(a,w_y)} / Σ_{c≠y} e^{2s(a,w_c)} )

Movshovitz-Attias, Toshev, Leung, Ioffe, Singh, "No fuss distance metric learning using proxies", ICCV 2017:
squared distances of unit vectors are 2 − 2s. As in the paper, the denominator leaves out the proxy of the true class,
so the loss may be negative.

Metrix: the mixed example is the anchor; its label over the proxies is λ and 1 − λ on the two classes,
−log( Σ y e^{2s} / Σ (1−y) e^{2s} ).
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, log_ratio, proxies
from baselines.weights import Weights


class ProxyNCA(Loss):
    """Proxy-NCA; it has no hyperparameters."""

    title = "Proxy-NCA"
    paper = "Movshovitz-Attias et al., ICCV 2017"
    year = 2017
    kind = "classes"
    candidates = "proxies"
    mixed = "anchors"
    rates: ClassVar = {"proxies": 100.0}

    def __init__(self, num_classes: int, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        self.proxies = proxies(num_classes, dim, generator)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        return log_ratio(negative.log_sum_exp(similarities, 2.0), positive.log_sum_exp(similarities, 2.0))
