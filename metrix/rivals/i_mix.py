"""i-Mix: mixed examples are the anchors, and their labels are mixed outside of the loss.

    ã_i  = the embedding of λ_i x_i + (1−λ_i) x_π(i)   at="input",
           unit(λ_i z_i + (1−λ_i) z_π(i))              at="embedding"
    ℓ̃(i) = λ_i ℓ(ã_i ; y_i) + (1−λ_i) ℓ(ã_i ; y_π(i))

π is a uniform permutation of the batch; fixed points are allowed. λ_i = max(λ, 1−λ) with λ ~ Beta(α, α), one for each
example. Lee, Zhu, Sohn, Li, Shin, Lee, "i-Mix: a domain-agnostic strategy for contrastive representation learning",
ICLR 2021, eq. 2, and the authors' code for the maximum.

The original has no labels: each image is its own class, the mixed view is the query, and the keys are clean. Decided
here, for labels: ℓ(ã_i ; c) is the clean loss of an anchor of class c among the clean batch without the two parents
i and π(i), positives and negatives by their labels; or among all class vectors, with the margins of a true class.
Gradients reach anchors and candidates. A regulariser of class vectors is added once, unweighted. The mining of a loss
acts on its clean term only.

The objective is mean ℓ̃, as published; with a `weight` w it is mean ℓ + w · mean ℓ̃. At the input the mixed rows pass
through the network apart from the clean ones: they have their own batch statistics and leave the running ones alone.
The original runs both in one batch. Mixing at a feature map is not published, so it is refused.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from baselines.form import Batch, Loss, moved, one_of, within
from baselines.numerics import cosine, full_precision, unit
from metrix import network
from metrix.anchors import mix_rows
from metrix.norms import inverse_norms
from metrix.pairs import Chosen, draw_lambda
from metrix.rivals._form import Rival


class Drawn(NamedTuple):
    """The partner π(i) of each example, in host memory, and its own weight λ_i, (n,) each."""

    partner: Tensor
    lam: Tensor

    def pairs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return i and π(i), (n,) each, on a device."""
        return Chosen(torch.arange(len(self.partner)), self.partner).on(device)


class IMix(Rival):
    """i-Mix `at` "input" or "embedding"; α > 0; `weight` > 0 of the mixed loss, or None for the mixed loss alone."""

    title = "i-Mix"
    paper = "Lee et al., ICLR 2021"
    year = 2021
    remark = "published for learning without labels"
    search_space: ClassVar = {"alpha": {"low": 0.5, "high": 4.0, "log": True}}
    refuses: ClassVar = {
        "tuples": "has no loss of a single anchor under a given label",
        "ranks": "has no loss of a single anchor under a given label",
        "proxies": "has proxies as anchors, and a mixed example is none",
    }
    counts = ("share_with_positive",)

    def __init__(
        self,
        loss: Loss,
        at: str = "input",
        alpha: float = 1.0,
        weight: float | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(loss, generator)
        if at == "feature":
            raise ValueError("i_mix does not mix at='feature': nothing is published; use 'input' or 'embedding'")
        self.at = one_of("at", at, ("input", "embedding"))
        self.alpha = within("alpha", alpha, above=0.0)
        self.weight = weight if weight is None else within("weight", weight, above=0.0)

    def draw(self, batch: Batch) -> Drawn:
        n, generator, like = len(batch.labels), self.generator, batch.similarities
        partner = torch.randperm(n, generator=generator, device=generator.device)
        lam = draw_lambda(self.alpha, (n,), generator)
        lam = torch.maximum(lam, 1 - lam).to(like.dtype)
        return Drawn(partner.cpu(), moved(lam, like.device))

    def total(self, batch: Batch, drawn: Drawn, mixed: Tensor | None = None) -> Tensor:
        """Return the objective (scalar); `mixed` are the unit embeddings (n, d) of the mixed images, if any."""
        if mixed is None:
            similarities = _at_embedding(batch, drawn)
        else:
            similarities = cosine(mixed, batch.embeddings if batch.proxies is None else batch.proxies)
        added = self._mixed_loss(batch, drawn, similarities)
        if self.weight is None:
            return added + self.loss.regulariser(batch)
        return self.loss.clean(batch) + self.weight * added

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:
        if self.training and self.at == "input":
            raise ValueError("at='input' mixes inside the network: call objective(model, images, labels)")
        return super().forward(embeddings, labels, indices_tuple)

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if not self.training or self.at == "embedding":
            return super().objective(model, images, labels)
        if not images.is_floating_point():
            raise TypeError(f"at='input' mixes normalised images, a floating-point tensor, not {images.dtype}")
        embeddings = model(images)
        with full_precision(embeddings.device):
            batch = self.loss.batch(embeddings, labels)
        drawn = self.draw(batch)
        self.mixed_rows = len(labels)

        def embed(i: Tensor, j: Tensor) -> Tensor:
            return model(network.mix(images, i, j, drawn.lam[i]))

        with network.isolated(model, images, self.generator):
            mixed = network.in_chunks(model, embed, *drawn.pairs(images.device))
        with full_precision(mixed.device):
            return self.total(batch, drawn, unit(mixed)[0].to(batch.embeddings.dtype))

    def warnings(self) -> tuple[str, ...]:
        share = self.means().get("share_with_positive", 1.0)
        if share >= 0.5:
            return ()
        return (
            f"only {share:.0%} of the labels of mixed examples had a positive in the batch; the others only repelled",
        )

    @classmethod
    def mixes_at(cls, **options: Any) -> Literal["embedding", "input"]:
        return options.get("at", "input")

    def _mixed_loss(self, batch: Batch, drawn: Drawn, similarities: Tensor) -> Tensor:
        """Return mean ℓ̃ (scalar) of mixed anchors with these similarities to the clean candidates."""
        with_positive = 1.0
        labels = torch.cat([batch.host_labels, batch.host_labels[drawn.partner]])  # one class, then the other
        anchors = Batch(batch.embeddings, labels, similarities.repeat(2, 1), batch.proxies)
        if not self.loss.learns_classes:
            parents = torch.stack(drawn.pairs(similarities.device), 1)
            others = torch.ones_like(similarities, dtype=torch.bool).scatter_(1, parents, False).repeat(2, 1)
            same = anchors.labels[:, None] == batch.labels
            anchors.sides = same & others, ~same & others
            with_positive = anchors.sides[0].any(1).mean(dtype=similarities.dtype)
        positive, negative = Loss.labelled(self.loss, anchors)  # the loss's own method may mine
        self.count(with_positive)
        losses = self.loss.formula(anchors.similarities, positive, negative)
        return torch.cat([drawn.lam, 1 - drawn.lam]) @ losses / len(similarities)


def _at_embedding(batch: Batch, drawn: Drawn) -> Tensor:
    """Return the similarities of the mixed embeddings, which follow from those of the clean ones."""
    z = batch.embeddings
    rows, partner = drawn.pairs(z.device)
    cosines = batch.similarities[rows, partner] if batch.proxies is None else (z * z.index_select(0, partner)).sum(1)
    inverse = inverse_norms(drawn.lam, cosines)
    return mix_rows(batch.similarities, inverse, rows, partner, drawn.lam[:, None], False)
