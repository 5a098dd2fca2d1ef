"""MoCHi: synthetic negatives, each a mix of two hard negatives of the anchor or of one and the anchor itself.

    B(a) = `between` vectors unit(α n + (1−α) n'),   two different n, n' of H(a),   α ~ U(0, 1)
    T(a) = `towards` vectors unit(β z_a + (1−β) n),  one n of H(a),                 β ~ U(0, ½)
    total = mean ℓ over the labelled set of a and (v, 0) for v in B(a) and T(a)

H(a) are the `hardest` most similar negatives of a; among equals the lower index comes first. Kalantidis, Sariyildiz,
Pion, Weinzaepfel, Larlus, "Hard negative mixing for contrastive learning", NeurIPS 2020, eq. 3 to 6. Synthetic
vectors carry no gradient, so z_a gets it as the anchor alone, and they are always negatives.

The original is self-supervised, with negatives from a memory queue. No official code was found. Decided here: the
batch takes the place of the queue, and the defaults keep the published proportions at its size; mixing starts at the
first step, without a warm-up; an anchor's vectors are candidates of no other anchor; they join the sums, counts and
means of the loss like clean negatives. With one negative alone B(a) is empty, without negatives T(a) as well. So a
batch of one class has the loss of the baseline.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from baselines.form import Batch, Loss, moved, whole
from baselines.numerics import first_derivative_only, full_precision
from metrix.norms import inverse_norms
from metrix.rivals._form import Rival


class Drawn(NamedTuple):
    """Ranks in H(a), 0 the most similar negative, and the weights that multiply the first of each pair.

    first, second, alpha  (n, between)
    one, beta             (n, towards)
    """

    first: Tensor
    second: Tensor
    alpha: Tensor
    one: Tensor
    beta: Tensor


class MoCHi(Rival):
    """MoCHi; `hardest` ≥ 1 negatives, `between` ≥ 0 mixes of two of them, `towards` ≥ 0 of one and the anchor."""

    title = "MoCHi"
    paper = "Kalantidis et al., NeurIPS 2020"
    year = 2020
    remark = "published for learning without labels, with negatives from a memory queue"
    search_space: ClassVar = {"hardest": {"choices": [8, 16, 32]}}
    refuses: ClassVar = {
        "tuples": "has no formula over one anchor's candidates",
        "ranks": "has no formula over one anchor's candidates",
        "classes": "has no negative examples to mix",
        "proxies": "has no negative examples to mix",
    }
    counts = ("synthetic_negatives",)

    def __init__(
        self,
        loss: Loss,
        hardest: int = 16,
        between: int = 16,
        towards: int = 2,
        generator: torch.Generator | None = None,
    ):
        super().__init__(loss, generator)
        self.hardest = whole("hardest", hardest)
        self.between = whole("between", between, 0)
        self.towards = whole("towards", towards, 0)

    def draw(self, batch: Batch) -> Drawn:
        n, like, kept = len(batch.labels), batch.similarities, self._kept(batch)
        sizes, generator = [self.between] * 3 + [self.towards] * 2, self.generator
        numbers = torch.rand(n, sum(sizes), generator=generator, device=generator.device, dtype=torch.float64)
        first, second, alpha, one, beta = torch.split(moved(numbers, like.device), sizes, 1)
        first, second, one = (first * kept).long(), (second * (kept - 1)).long(), (one * kept).long()
        second += second >= first  # uniform among the others
        return Drawn(first, second, alpha.to(like), one, beta.to(like) / 2)

    def total(self, batch: Batch, drawn: Drawn) -> Tensor:
        if (
            batch.host_labels == batch.host_labels[0]
        ).all():  # columns outside of every set would change how sums are rounded
            self.count(0.0)
            return self.loss.clean(batch)
        positive, negative = self.loss.sides(batch)
        kept = self._kept(batch)
        exists = torch.cat([(kept > 0).expand_as(drawn.one), (kept > 1).expand_as(drawn.first)], 1)
        batch = Batch(
            batch.embeddings,
            batch.host_labels,
            torch.cat([batch.similarities, self._synthetic(batch, negative, drawn)], 1),
            sides=(nn.functional.pad(positive, (0, exists.shape[1])), torch.cat([negative, exists], 1)),
        )
        self.count(exists.sum() / len(exists))
        return self.loss.clean(batch)

    def warnings(self) -> tuple[str, ...]:
        if self.means().get("synthetic_negatives", 1.0) > 0:
            return ()
        return ("no synthetic negative was made, since no batch held two classes, so the row equals its baseline",)

    @classmethod
    def refusal(
        cls, loss: str | nn.Module, hyperparameters: Mapping[str, Any] | None = None, **options: Any
    ) -> str | None:
        given = (hyperparameters or {}).get("mining") if isinstance(loss, str) else getattr(loss, "mining", None)
        why_not = super().refusal(loss, hyperparameters, **options)
        if why_not is None and given is not None:
            return f"mochi does not take mining={given!r}: mining would choose among synthetic negatives"
        return why_not

    def _kept(self, batch: Batch) -> Tensor:
        """Return the size of H(a) of each anchor (n, 1)."""
        return self.loss.sides(batch)[1].sum(1, keepdim=True).clamp(max=self.hardest)

    def _synthetic(self, batch: Batch, negative: Tensor, drawn: Drawn) -> Tensor:
        """Return the similarities (n, towards + between) of the anchors to their own synthetic vectors."""
        constant = batch.similarities.detach()
        ranked = constant.masked_fill(~negative, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        ranked = ranked[:, : self.hardest]
        first, second, one = (
            ranked.gather(1, ranks.clamp(max=ranked.shape[1] - 1)) for ranks in (drawn.first, drawn.second, drawn.one)
        )
        anchors = torch.arange(len(one), device=one.device)[:, None].expand_as(one)
        i, j = torch.cat([anchors, first], 1), torch.cat([one, second], 1)
        weight = torch.cat([drawn.beta, drawn.alpha], 1)
        inverse = inverse_norms(weight, constant[i, j])
        return _FromAnchors.apply(batch.embeddings, constant, i, j, weight * inverse, (1 - weight) * inverse)


class _FromAnchors(Function):
    """Compute the similarities (n, m) of the anchors z (n, d) to λ z_i + μ z_j; only the anchors get a gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, similarities: Tensor, i: Tensor, j: Tensor, lam: Tensor, mu: Tensor) -> Tensor:
        ctx.save_for_backward(z, i, j, lam, mu)
        return similarities.gather(1, i).mul_(lam).addcmul_(similarities.gather(1, j), mu).clamp_(-1.0, 1.0)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, i, j, lam, mu = ctx.saved_tensors
        towards = gradient.new_zeros(len(z), len(z))
        towards.scatter_add_(1, i, gradient * lam).scatter_add_(1, j, gradient * mu)
        with full_precision(z.device):
            return towards @ z, None, None, None, None, None
