"""ProxyNCA++: the chance that a softmax over all proxies picks the one of the example's class.

    ℓ(a) = −log( e^{2s(a,w_y)/T} / Σ_c e^{2s(a,w_c)/T} )

Teh, DeVries, Taylor, "ProxyNCA++: revisiting and revitalizing proxy neighborhood component analysis", ECCV 2020, with
their temperature T = 1/9 on squared distances of unit vectors, 2 − 2s. Their other changes (global max pooling,
class-balanced sampling, faster proxies) belong to the training, not to the loss.

Metrix: the mixed example is the anchor; its label over the proxies is λ and 1 − λ on the two classes, inside the
logarithm.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, proxies, within
from baselines.weights import Weights, total


class ProxyNCAPlusPlus(Loss):
    """ProxyNCA++; temperature T > 0."""

    title = "ProxyNCA++"
    paper = "Teh et al., ECCV 2020"
    year = 2020
    kind = "classes"
    search_space: ClassVar = {"temperature": {"low": 0.02, "high": 1.0, "log": True}}
    candidates = "proxies"
    mixed = "anchors"
    rates: ClassVar = {"proxies": 100.0}

    def __init__(
        self, num_classes: int, dim: int, generator: torch.Generator | None = None, temperature: float = 1 / 9
    ):
        super().__init__()
        self.temperature = within("temperature", temperature, above=0.0)
        self.proxies = proxies(num_classes, dim, generator)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        slope = 2 / self.temperature
        return total(positive, negative, similarities, slope) - positive.log_sum_exp(similarities, slope)
