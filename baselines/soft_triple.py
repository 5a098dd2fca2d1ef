"""SoftTriple: classification by the soft nearest of several centres of each class, with a margin.

    S_c  = Σ_k softmax_k(⟨z,w_ck⟩/γ)·⟨z,w_ck⟩
    ℓ(a) = −log( e^{κ(S_y−δ)} / (e^{κ(S_y−δ)} + Σ_{c≠y} e^{κS_c}) )
    L    = mean ℓ  +  τ/(C·K(K−1)) Σ_c Σ_{t<u} √(2 + 1e-5 − 2⟨w_ct,w_cu⟩)

Qian, Shang, Sun, Hu, Tan, Jin, Li, "SoftTriple loss: deep metric learning without triplet sampling", ICCV 2019. Their
λ is the scale κ here. The constant under the root is from their code.

Metrix: the mixed example is the anchor; its label y over the classes is λ and 1 − λ on the two,
−log( Σ y_c e^{κ(S_c−δ)} / (Σ_{y_c>0} e^{κ(S_c−δ)} + Σ_{y_c=0} e^{κS_c}) ). The regulariser is part of the clean loss
alone.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Batch, Loss, proxies, whole, within
from baselines.numerics import cosine
from baselines.weights import Weights, total


class SoftTriple(Loss):
    """SoftTriple; scale κ > 0, γ > 0, margin δ in [0, 2], `centres` K ≥ 1 of each class, regularisation τ ≥ 0."""

    title = "SoftTriple"
    paper = "Qian et al., ICCV 2019"
    year = 2019
    kind = "classes"
    search_space: ClassVar = {
        "scale": {"low": 5.0, "high": 80.0, "log": True},
        "gamma": {"low": 0.02, "high": 0.5, "log": True},
        "delta": {"low": 0.0, "high": 0.1},
        "tau": {"low": 0.0, "high": 1.0},
        "centres": {"choices": [2, 5, 10]},
    }
    candidates = "proxies"
    mixed = "anchors"
    rates: ClassVar = {"proxies": 100.0}

    def __init__(
        self,
        num_classes: int,
        dim: int,
        generator: torch.Generator | None = None,
        scale: float = 20.0,
        gamma: float = 0.1,
        delta: float = 0.01,
        centres: int = 10,
        tau: float = 0.2,
    ):
        super().__init__()
        self.scale = within("scale", scale, above=0.0)
        self.gamma = within("gamma", gamma, above=0.0)
        self.delta = within("delta", delta, 0.0, 2.0)
        self.tau = within("tau", tau, 0.0)
        self.proxies = proxies(num_classes, dim, generator, per_class=whole("centres", centres))

    def vectors(self) -> Tensor:
        # The first centres of all classes come first: sums over k are then 30 times faster.
        return self.proxies.transpose(0, 1).flatten(0, 1)

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        similarities = similarities.view(len(similarities), self.proxies.shape[1], -1)
        nearest = ((similarities / self.gamma).softmax(1) * similarities).sum(1)
        nearest = nearest - self.delta * positive.present.to(nearest.dtype)
        return total(positive, negative, nearest, self.scale) - positive.log_sum_exp(nearest, self.scale)

    def clean(self, batch: Batch) -> Tensor:
        return super().clean(batch) + self.regulariser(batch)

    def regulariser(self, batch: Batch) -> Tensor | float:
        classes, k = self.proxies.shape[:2]
        if k == 1 or self.tau == 0:
            return 0.0
        assert batch.proxies is not None
        centres = batch.proxies.view(k, classes, -1).transpose(0, 1)
        cosines = cosine(centres, centres)
        distances = (2 + 1e-5 - 2 * cosines).sqrt().triu(diagonal=1)
        return self.tau / (classes * k * (k - 1)) * distances.sum()
