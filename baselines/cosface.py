"""CosFace: classification by cosines, with a margin subtracted from the cosine to the true class.

    ℓ(a) = −log( e^{κ(s_y − m)} / (e^{κ(s_y − m)} + Σ_{c≠y} e^{κs_c}) ),  s_c = s(a, w_c), κ the scale

Wang, Wang, Zhou, Ji, Gong, Zhou, Li, Liu, "CosFace: large margin cosine loss for deep face recognition", CVPR 2018,
eq. 4.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, proxies, within
from baselines.weights import Weights, total


class CosFace(Loss):
    """CosFace; margin m in [0, 2], scale > 0."""

    title = "CosFace"
    paper = "Wang et al., CVPR 2018"
    year = 2018
    kind = "classes"
    search_space: ClassVar = {"margin": {"low": 0.0, "high": 0.5}, "scale": {"low": 8.0, "high": 128.0, "log": True}}
    candidates = "proxies"
    mixed = None
    why_no_metrix = (
        "it subtracts its margin from the cosine to the one true class, and a mixed label has no single true class"
    )
    rates: ClassVar = {"proxies": 100.0}

    def __init__(
        self,
        num_classes: int,
        dim: int,
        generator: torch.Generator | None = None,
        margin: float = 0.35,
        scale: float = 64.0,
    ):
        super().__init__()
        self.margin = within("margin", margin, 0.0, 2.0)
        self.scale = within("scale", scale, above=0.0)
        self.proxies = proxies(num_classes, dim, generator)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        similarities = similarities - self.margin * positive.values
        return total(positive, negative, similarities, self.scale) - positive.log_sum_exp(similarities, self.scale)
