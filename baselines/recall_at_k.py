"""Recall@k surrogate: the rank of each positive, softened, and whether that rank is at most k, softened too.

    r(i) = 1 + Σ_{j∈P∪N, j≠i} σ((s(a,j) − s(a,i)) / T)
    recall_k(a) = min(k, Σ_{i∈P} σ((k − r(i)) / T_k)) / min(k, |P|)
    ℓ(a) = 1 − mean over k of recall_k(a)

Patel, Tolias, Matas, "Recall@k surrogate loss with large batches and similarity mixup", CVPR 2022; σ is the logistic
function, T is `temperature`, T_k `k_temperature`. The ks are all powers of two up to `largest_k`, each at most the
number of examples in the batch; two that become equal both count, as in the authors' code. Deviation: a mean over the
anchors, where the code adds anchors up, each divided by their number.

`include_query`: the code counts the query itself in r(i), with s(a,a) from the diagonal, though not among the
positives; True is that code. Either way a perfect ranking costs more than 0: with four positives 0.0991, or 0.3004
with the query. So never compare values of the two. Decision: an anchor without a positive contributes 0 and is in
the mean (0/0 in the code).

Published with whole classes of four in batches of about 400, and of 4,000 on Stanford Online Products. In a batch of
100 it is another experiment.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Batch, Loss, one_of, within
from baselines.ranks import mean_over_ranks, too_few, with_positive


class RecallAtK(Loss):
    """Recall@k; temperatures T and T_k > 0, `largest_k` a power of two, `include_query` as the authors' code does."""

    title = "Recall@k"
    paper = "Patel et al., CVPR 2022"
    year = 2022
    kind = "ranks"
    remark = "published with batches of 400 (CUB, Cars) to 4,000 images (SOP)"
    search_space: ClassVar = {"temperature": {"low": 0.002, "high": 0.1, "log": True}}
    mixed = None
    why_no_metrix = "the rank of a positive is a count over all candidates, not a sum over single labelled ones"
    counts = ("anchors_with_positive",)

    def __init__(
        self,
        temperature: float = 0.01,
        k_temperature: float = 1.0,
        largest_k: int = 16,
        include_query: bool = False,
    ):
        super().__init__()
        self.temperature = within("temperature", temperature, above=0.0)
        self.k_temperature = within("k_temperature", k_temperature, above=0.0)
        self.largest_k: int = one_of("largest_k", largest_k, tuple(2**power for power in range(13)))
        self.include_query = one_of("include_query", include_query, (False, True))

    def clean(self, batch: Batch) -> Tensor:
        positive, negative = self.sides(batch)
        self.count(with_positive(positive))
        everyone = torch.ones_like(positive) if self.include_query else positive | negative
        powers = torch.arange(self.largest_k.bit_length(), device=positive.device)
        ks = (1 << powers).clamp(max=len(batch.embeddings))  # virtual examples do not raise k

        def misses(others: Tensor, _: Tensor, valid: Tensor) -> Tensor:
            ranks = others + 0.5  # a positive counts itself as ½
            soft_hits = ((ks[:, None] - ranks[:, None, :]) / self.k_temperature).sigmoid()
            hits = torch.minimum((soft_hits * valid[:, None, :]).sum(2), ks)
            count = valid.sum(1)
            recall = hits / torch.minimum(count[:, None], ks).clamp(min=1)
            return count.clamp(max=1) - recall.mean(1)

        longest = batch.largest_class - 1
        return mean_over_ranks(misses, batch.similarities, positive, everyone, self.temperature, longest)

    def warnings(self) -> tuple[str, ...]:
        return too_few(self.means())
