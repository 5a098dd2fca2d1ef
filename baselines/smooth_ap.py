"""Smooth-AP: the average precision of each anchor's ranking, with every comparison "is j before i" softened.

    ℓ(a) = 1 − (1/|P|) Σ_{i∈P} (1 + Σ_{j∈P, j≠i} σ(D(j,i))) / (1 + Σ_{j∈P∪N, j≠i} σ(D(j,i)))
    D(j,i) = (s(a,j) − s(a,i)) / T

Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: smoothing the path towards large-scale image retrieval", ECCV 2020; σ
is the logistic function. Labels may come in any order and number; the authors' code needs classes of one size in
consecutive rows. Published with four examples of a class, in batches of 112 to 384.

`include_query`: the definition ranks the rest of the batch. The authors' code puts the query a into its own positives
and candidates, with s(a,a) from the diagonal; True is that code. Values of the two differ, so never compare them.
Decision: an anchor without a positive contributes 0 and is in the mean; with `include_query` it has itself.

Where all similarities around a positive are more than 0.1 away, it hardly moves: σ′ is below 1e-4 there at T = 0.01.
"""

from typing import ClassVar

from torch import Tensor

from baselines.form import Batch, Loss, one_of, within
from baselines.ranks import before, mean_over_ranks, too_few, with_positive


class SmoothAP(Loss):
    """Smooth-AP; temperature T > 0, `include_query` to rank the query too, as the authors' code does."""

    title = "Smooth-AP"
    paper = "Brown et al., ECCV 2020"
    year = 2020
    kind = "ranks"
    remark = "published with batches of 112 to 384 images, 4 of each class"
    search_space: ClassVar = {"temperature": {"low": 0.002, "high": 0.1, "log": True}}
    mixed = None
    why_no_metrix = "the rank of a positive is a count over all candidates, not a sum over single labelled ones"
    counts = ("anchors_with_positive",)

    def __init__(self, temperature: float = 0.01, include_query: bool = False):
        super().__init__()
        self.temperature = within("temperature", temperature, above=0.0)
        self.include_query = one_of("include_query", include_query, (False, True))

    def clean(self, batch: Batch) -> Tensor:
        positive, negative = self.sides(batch)
        self.count(with_positive(positive))
        relevant = ~negative if self.include_query else positive
        longest = batch.largest_class - (not self.include_query)
        return mean_over_ranks(self.imprecision, batch.similarities, relevant, negative, self.temperature, longest)

    def imprecision(self, negatives: Tensor, near: Tensor, valid: Tensor) -> Tensor:
        """Return 1 − the average precision (a,), from the negatives before each positive (a, p)."""
        rank = before(near.masked_fill(valid == 0, float("-inf")), near, self.temperature) + 0.5
        # 1 − rank / (rank + negatives), which would lose its digits in a good ranking.
        share = negatives / (rank + negatives)
        return (valid * share).sum(1) / valid.sum(1).clamp(min=1)

    def warnings(self) -> tuple[str, ...]:
        return too_few(self.means())
