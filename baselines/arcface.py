"""ArcFace: classification by angles, with a margin added to the angle to the true class.

    ℓ(a) = −log( e^{κt} / (e^{κt} + Σ_{c≠y} e^{κs_c}) ),  t = cos(θ_y + m) if θ_y < π − m, else s_y − m sin m,

where s_c = cos θ_c is the similarity to the weight vector of class c and κ the scale. Deng, Guo, Xue, Zafeiriou,
"ArcFace: additive angular margin loss for deep face recognition", CVPR 2019, eq. 3, and their code for angles beyond
π − m, where cos(θ + m) would rise again.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Loss, proxies, within
from baselines.numerics import square_root
from baselines.weights import Listed, Weights, total


class ArcFace(Loss):
    """ArcFace; margin m in [0, π] radians, scale > 0."""

    title = "ArcFace"
    paper = "Deng et al., CVPR 2019"
    year = 2019
    kind = "classes"
    search_space: ClassVar = {"margin": {"low": 0.0, "high": 0.8}, "scale": {"low": 8.0, "high": 128.0, "log": True}}
    candidates = "proxies"
    mixed = None
    why_no_metrix = (
        "it adds its margin to the angle of the one true class, and a mixed label has no single true class"
    )
    rates: ClassVar = {"proxies": 100.0}

    def __init__(
        self,
        num_classes: int,
        dim: int,
        generator: torch.Generator | None = None,
        margin: float = 0.5,
        scale: float = 64.0,
    ):
        super().__init__()
        self.margin = within("margin", margin, 0.0, math.pi)
        self.scale = within("scale", scale, above=0.0)
        self.proxies = proxies(num_classes, dim, generator)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        assert isinstance(positive, Listed)  # the candidates are proxies, so a label lists one column
        s, m = similarities.gather(1, positive.index), self.margin
        enlarged = s * math.cos(m) - square_root(1 - s * s) * math.sin(m)
        target = torch.where(s > math.cos(math.pi - m), enlarged, s - m * math.sin(m))
        similarities = similarities.scatter(1, positive.index, target)
        return total(positive, negative, similarities, self.scale) - self.scale * target.squeeze(1)
