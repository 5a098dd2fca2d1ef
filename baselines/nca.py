"""Neighbourhood component analysis: the chance that a softmax over the batch picks a neighbour of the anchor's class.

    ℓ(a) = −log( Σ_p e^{s(a,p)/T} / (Σ_p e^{s(a,p)/T} + Σ_n e^{s(a,n)/T}) )

Goldberger, Roweis, Hinton, Salakhutdinov, "Neighbourhood components analysis", NIPS 2004, with the logarithm
outside their sum over neighbours. Deviation: a temperature T; their squared distances between unit vectors are T = ½.
An anchor without a positive contributes 0.

Metrix: a mixed example is the anchor, with weight λ on the class of its first and 1 − λ on that of its second
constituent, among the clean batch without these two. (As a candidate of clean anchors it would enter both sums with
one function of s, and the mixed loss would be the constant ln((1−λ)/λ).)
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Loss, log_ratio, within
from baselines.weights import Weights, total


class NCA(Loss):
    """Neighbourhood component analysis; temperature T > 0."""

    title = "NCA"
    paper = "Goldberger et al., NIPS 2004"
    year = 2004
    search_space: ClassVar = {"temperature": {"low": 0.02, "high": 0.5, "log": True}}
    mixed = "anchors"

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = within("temperature", temperature, above=0.0)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        slope = 1 / self.temperature
        everyone = total(positive, negative, similarities, slope)
        return log_ratio(everyone, positive.log_sum_exp(similarities, slope))
