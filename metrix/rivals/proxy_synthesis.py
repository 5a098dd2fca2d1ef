"""Proxy synthesis: synthetic classes between real ones, with examples and class vectors mixed by the same λ.

    z̃_i = unit(λ z_i + (1−λ) z_p(i)),    w̃ = unit(λ w_y(i) + (1−λ) w_y(p(i))),    λ ~ Beta(α, α), one for each step

Gu, Ko, Kim, "Proxy synthesis: learning with synthetic classes for deep metric learning", AAAI 2021, and their code.
The first ⌊μn⌋ rows i are mixed (μ is `ratio`), each with a row p(i) of another class. The objective is the clean loss
of all n + ⌊μn⌋ rows and of all class vectors, real and new, with one mean and one denominator. A new class is a class
like another: it is the target of its own examples, with the margin of the loss, and a negative of all other rows.
Gradients reach the real embeddings and class vectors through everything. Mixed vectors are not formed; their
similarities follow from those of the batch.

Decisions: p(i) = i − s (mod n), with the smallest shift s ≥ 1 for which no row meets its own class. If there is none,
p(i) is the nearest earlier row of another class. (Their code shifts by one. Where neighbours are of one class, its
new classes are then equal to real ones.) Rows with the same ordered pair of classes share one new class, numbered by
first appearance. The centres of a class are mixed in their order, the first with the first; SoftTriple's regulariser
is over the real ones. A mixture shorter than 1e-6 is multiplied by 1e6. Their Proxy-NCA, with its own proxy in the
denominator, is ProxyNCA++ here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from baselines.form import Batch, Loss, moved, within
from metrix.norms import inverse_norms
from metrix.pairs import draw_lambda
from metrix.rivals._form import Rival
from metrix.rivals._similarities import clamped, mixed


class ProxySynthesis(Rival):
    """Proxy synthesis; alpha > 0, `ratio` μ in (0, 1] of mixed to clean rows."""

    title = "Proxy synthesis"
    paper = "Gu et al., AAAI 2021"
    year = 2021
    search_space: ClassVar = {
        "alpha": {"low": 0.1, "high": 2.0, "log": True},
        "ratio": {"low": 0.25, "high": 1.0},
    }
    refuses: ClassVar = {
        "pairs": "has no class vectors to synthesise",
        "tuples": "has no class vectors to synthesise",
        "ranks": "has no class vectors to synthesise",
    }
    published_with = ("arcface", "cosface", "norm_softmax", "proxy_anchor", "proxy_nca_pp", "soft_triple")
    counts = ("new_classes",)

    def __init__(self, loss: Loss, generator: torch.Generator | None = None, alpha: float = 0.4, ratio: float = 1.0):
        super().__init__(loss, generator)
        self.alpha = within("alpha", alpha, above=0.0)
        self.ratio = within("ratio", ratio, high=1.0, above=0.0)

    def draw(self, batch: Batch) -> float:
        """Return λ."""
        return draw_lambda(self.alpha, (), self.generator).item()

    def total(self, batch: Batch, drawn: float) -> Tensor:
        labels = cast(list[int], batch.host_labels.tolist())  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
        partner = partners(labels)[: int(self.ratio * len(labels))]
        classes, new = self.loss.classes_in(batch), dict[tuple[int, int], int]()
        target = [new.setdefault((labels[i], labels[p]), classes + len(new)) for i, p in enumerate(partner)]
        self.count(len(new))
        if not new:
            return self.loss.clean(batch)
        device, added = batch.similarities.device, torch.tensor(target)
        rows, partner = moved(torch.tensor([range(len(target)), partner]), device)
        first, second = moved(torch.tensor(list(new)), device).T

        assert batch.proxies is not None
        proxies_first = self.loss.anchors == "proxies"
        clean = batch.similarities.T if proxies_first else batch.similarities
        joined = _joined(clean, batch.embeddings, rows, partner, drawn)
        # The first centres of all classes come first, also with the new ones.
        by_class = joined.T.reshape(-1, classes, len(joined)).transpose(0, 1)
        centres = batch.proxies.view(-1, classes, batch.proxies.shape[1]).transpose(0, 1)
        joined = _joined(by_class, centres, first, second, drawn).transpose(0, 1).flatten(0, 1)
        similarities = clamped(joined if proxies_first else joined.T)
        larger = replace(batch, similarities=similarities, host_labels=torch.cat([batch.host_labels, added]))
        return self.loss.clean(replace(larger, sides=None, log_sides=None))

    def warnings(self) -> tuple[str, ...]:
        if self.means().get("new_classes") != 0:
            return ()
        return ("no batch held two classes, so no synthetic class was made: the row equals the loss alone",)


def partners(labels: list[int]) -> list[int]:
    """Return for each row an earlier one (the last is before the first) of another class; [] if all are of one."""
    n = len(labels)
    for shift in range(1, n):
        if all(labels[i] != labels[i - shift] for i in range(n)):
            return [(i - shift) % n for i in range(n)]
    if len(set(labels)) == 1:
        return []
    return [next(j % n for j in range(i - 1, i - n, -1) if labels[j] != labels[i]) for i in range(n)]


def _joined(similarities: Tensor, vectors: Tensor, first: Tensor, second: Tensor, lam: float) -> Tensor:
    """Return similarities (n, …, k) of unit vectors (n, …, d), followed by those of the mixed pairs of them, (m,)."""
    cosines = (vectors.index_select(0, first) * vectors.index_select(0, second)).sum(-1, keepdim=True)
    return torch.cat([similarities, mixed(similarities, first, second, lam) * inverse_norms(lam, cosines)])
