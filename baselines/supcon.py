"""Supervised contrastive loss: each positive against the whole batch, with the mean outside the logarithm.

    ℓ(a) = (1/|P|) Σ_p −log( e^{s(a,p)/T} / Σ_{x≠a} e^{s(a,x)/T} )

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, "Supervised contrastive learning", NeurIPS 2020,
eq. 2, on one view of each image. An anchor without a positive contributes 0.
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Loss, within
from baselines.weights import Weights, total


class SupCon(Loss):
    """Supervised contrastive loss; temperature T > 0."""

    title = "Supervised contrastive"
    paper = "Khosla et al., NeurIPS 2020"
    year = 2020
    search_space: ClassVar = {"temperature": {"low": 0.02, "high": 0.5, "log": True}}
    mixed = None
    why_no_metrix = (
        "each positive has its own logarithm, whose denominator contains every candidate whatever its label, "
        "so a mixed label changes no denominator, and no mixed form is published"
    )

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = within("temperature", temperature, above=0.0)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        positives = positive.count()
        attract = positive.sum(similarities) / self.temperature / positives.clamp(min=1)
        everyone = total(positive, negative, similarities, 1 / self.temperature)
        return (everyone - attract).masked_fill(positives == 0, 0.0)
