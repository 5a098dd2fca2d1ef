"""Embedding expansion: harder negatives, from points on the chords between examples of a class.

    S(i) = { unit( ((m+1−t) z_i + t z_q(i)) / (m+1) ) : t = 1 … m },    Â(c) = ∪_{y_i = c} ({z_i} ∪ S(i))
    ŝ(a,n) = max over u ∈ Â(y_a), v ∈ Â(y_n) of ⟨u, v⟩,    positives keep s(a,p)

Ko, Gu, "Embedding expansion: augmentation in embedding space for deep metric learning", CVPR 2020, and their code.
The objective is the clean loss on these similarities: each negative stays one candidate. The points are not formed;
their similarities follow from those of the batch. Gradients reach both ends of the maximal pair, up to four
embeddings. Equal maxima share the gradient equally. With `pool` "class", all negatives of a class have the same
similarity, so a sum over negatives counts a class as often as it has examples.

`pool` "class" is the set of the paper, all negative pairs of the two classes. "example" is that of the code, u from
{z_a} ∪ S(a) and v from {z_n} ∪ S(n). Decisions: the partner q(i) is in the same class, in batch order the 1st with
the 2nd, the 3rd with the 4th and so on. An odd last one takes the first, and a single example has no points. (Their
code takes neighbouring rows whatever their labels, and needs an even number.) A chord's point shorter than 1e-6 is
multiplied by 1e6. The triplet, lifted and N-pair losses of the paper are other losses than those here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Batch, Loss, one_of, whole
from metrix.norms import inverse_norms
from metrix.rivals._form import Rival
from metrix.rivals._similarities import clamped


class EmbeddingExpansion(Rival):
    """Embedding expansion; `points` m ≥ 1, of unit length with `renormalize`; pool "class" or "example"."""

    title = "Embedding expansion"
    paper = "Ko and Gu, CVPR 2020"
    year = 2020
    search_space: ClassVar = {"points": {"choices": [1, 2, 3, 4]}}
    refuses: ClassVar = {
        "classes": "has no negative pair of examples to make harder",
        "proxies": "has no negative pair of examples to make harder",
        "ranks": "counts every candidate once, and all negatives of a class would tie",
    }
    published_with = ("multi_similarity",)
    counts = ("synthetic_points",)

    def __init__(
        self,
        loss: Loss,
        generator: torch.Generator | None = None,
        points: int = 2,
        renormalize: bool = True,
        pool: str = "class",
    ):
        super().__init__(loss, generator)
        self.points = whole("points", points)
        self.renormalize = one_of("renormalize", renormalize, (True, False))
        self.pool = one_of("pool", pool, ("class", "example"))

    def total(self, batch: Batch, drawn: None) -> Tensor:
        clean, same = batch.similarities, batch.labels[:, None] == batch.labels
        partner = partners(same)
        alone = partner == torch.arange(len(same), device=same.device)
        self.count(self.points * (~alone).sum())
        everything = self.expanded(clean, partner, alone)
        hardest = clamped(everything.amax((0, 1))) if self.pool == "example" else _of_classes(everything, same)
        return self.loss.clean(replace(batch, similarities=torch.where(same, clean, hardest)))

    def expanded(self, similarities: Tensor, partner: Tensor, alone: Tensor) -> Tensor:
        """Return the similarities [u, t, j, i] of point u of example j with point t of example i.

        Point 0 is the example itself. Without a partner all its points are, which changes no maximum.
        """
        share = 1 - torch.arange(self.points + 1, device=partner.device).to(similarities)[:, None] / (self.points + 1)
        share = share.masked_fill(alone, 1.0)
        inverse = torch.ones_like(share)
        if self.renormalize:
            inverse = inverse_norms(share, similarities.gather(1, partner[:, None]).T.expand_as(share))

        def with_points(rows: Tensor) -> Tensor:
            """Return similarities (…, n, k) of examples to others, with those of their points, (m + 1, …, n, k)."""
            shape = (-1, *[1] * (rows.ndim - 2), len(partner), 1)
            return rows.index_select(-2, partner).lerp(rows, share.view(shape)) * inverse.view(shape)

        return with_points(with_points(similarities).mT.contiguous())

    def warnings(self) -> tuple[str, ...]:
        if self.means().get("synthetic_points") != 0:
            return ()
        return (
            "no batch held two examples of a class, so no synthetic point was made: the row equals the loss alone",
        )


def partners(same: Tensor) -> Tensor:
    """Return the partner (n,) of each row, from where labels are the same (n, n); its own index for a single one."""
    place = same.tril(-1).sum(1)  # among the rows of its class
    wanted = place ^ 1
    wanted = torch.where(wanted < same.sum(1), wanted, 0)
    return (same & (place == wanted[:, None])).int().argmax(1)


def _of_classes(everything: Tensor, same: Tensor) -> Tensor:
    """Return the maximum of all similarities [u, t, j, i] between two classes, for each two examples of them (n, n).

    Equal maxima share the gradient.
    """
    n, first = len(same), same.int().argmax(1)  # the first example stands for its class
    place = (first[:, None] * n + first).flatten()

    def summed(x: Tensor) -> Tensor:
        return x.new_zeros(n * n).scatter_add(0, place, x.sum((0, 1)).flatten())

    def of_examples(x: Tensor) -> Tensor:
        return x.gather(0, place).view(n, n)

    fixed = everything.detach()
    lowest = fixed.new_full((n * n,), -torch.inf)
    largest = of_examples(lowest.scatter_reduce(0, place, fixed.amax((0, 1)).flatten(), "amax"))
    ties = fixed.clone().eq_(largest)  # numbers: comparing into them is faster than turning truth values into them
    shared = of_examples(summed(everything * ties) / summed(ties).clamp(min=1))
    return largest.clamp(-1.0, 1.0) + (shared - shared.detach())  # the mean of equal numbers may differ in a digit
