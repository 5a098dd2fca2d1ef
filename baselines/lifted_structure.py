"""Generalised lifted-structure loss: the soft farthest positive against the soft nearest negative, as a hinge.

    ℓ(a) = [ log Σ_p e^{−s(a,p)}  +  log Σ_n e^{s(a,n) + m} ]₊

Hermans, Beyer, Leibe, "In defense of the triplet loss for person re-identification", arXiv 1703.07737, the
generalised form of Oh Song et al., CVPR 2016. Deviation: distances are D = −s on unit vectors. An anchor without a
positive or without a negative contributes 0. With one λ for the whole batch λ only shifts the two logarithms, so the
gradient of the mixed loss does not depend on the label, except through the hinge.
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Loss, within
from baselines.weights import Weights

_ONE_SIDE = "all its mixed examples have the same label, so for every anchor one of the logarithms is of an empty sum"


class LiftedStructure(Loss):
    """Generalised lifted-structure loss; margin m, a finite number."""

    title = "Lifted structure"
    paper = "Hermans et al., arXiv 2017"
    year = 2017
    search_space: ClassVar = {"margin": {"low": 0.0, "high": 2.0}}
    refused_pairs: ClassVar = {"pos-pos": _ONE_SIDE, "neg-neg": _ONE_SIDE}
    exponential = True

    def __init__(self, margin: float = 1.0):
        super().__init__()
        self.margin = within("margin", margin)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        farthest = positive.log_sum_exp(similarities, slope=-1.0)
        nearest = negative.log_sum_exp(similarities, slope=1.0, centre=-self.margin)
        return (farthest + nearest).relu()
