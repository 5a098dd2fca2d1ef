"""Normalised softmax: classification by the cosine to one weight vector for each class.

    ℓ(a) = −log( e^{κs(a,w_y)} / Σ_c e^{κs(a,w_c)} ),  κ the scale

Zhai, Wu, "Classification is a strong baseline for deep metric learning", BMVC 2019; their temperature σ is
1/scale. Deviation: no layer normalisation before the embedding and no bias; these belong to the network.

Metrix: the mixed example is the anchor; its label over the classes is λ and 1 − λ on the two, inside the logarithm.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, proxies, within
from baselines.weights import Weights, total


class NormSoftmax(Loss):
    """Normalised softmax; scale > 0."""

    title = "Normalised softmax"
    paper = "Zhai and Wu, BMVC 2019"
    year = 2019
    kind = "classes"
    search_space: ClassVar = {"scale": {"low": 5.0, "high": 80.0, "log": True}}
    candidates = "proxies"
    mixed = "anchors"
    rates: ClassVar = {"proxies": 100.0}

    def __init__(self, num_classes: int, dim: int, generator: torch.Generator | None = None, scale: float = 20.0):
        super().__init__()
        self.scale = within("scale", scale, above=0.0)
        self.proxies = proxies(num_classes, dim, generator)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        return total(positive, negative, similarities, self.scale) - positive.log_sum_exp(similarities, self.scale)
