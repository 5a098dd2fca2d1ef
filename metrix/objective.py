"""The objective of Metrix: mean clean loss + w · mean mixed loss, at the input, a feature map or the embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from baselines.form import Batch, Loss, check_labels, moved, one_of, refuse_indices, whole, within
from baselines.numerics import cosine, full_precision, unit
from metrix import network
from metrix import pairs as choose
from metrix.forms import LEVELS, no_hardest, refusal
from metrix.mixing import embedded_loss, mixed_loss
from metrix.rivals._form import Rival


class Metrix(nn.Module):
    """The mixed variant of a loss: total = mean ℓ + weight · mean ℓ̃ (Venkataramanan et al., ICLR 2022).

    Args:
        loss: one of the losses of `baselines` that has a mixed form, or such a loss with a memory (rival `xbm`).
        at: "embedding", a drop-in for any training loop and nearly free; "feature", a stage of the network; "input".
        stage: the name or index of the stage to mix at="feature"; None is the last feature map, before pooling.
        pairs: "pos-neg", "anc-neg", "pos-pos", "neg-neg", or "alternate": one of the first two, drawn at each step.
        weight: w ≥ 0 of the mixed loss; 0 gives the baseline, to the bit.
        alpha: λ ~ Beta(alpha, alpha).
        renormalize: whether mixed embeddings have unit length at="embedding"; at the other levels they always have.
        lambda_per: one λ for the "batch", or one for each pair of examples ("example").
        hardest: mix each example with its k most similar ones of other classes, a number or "all"; None means "all"
            at the embedding and 1 elsewhere. Before the last stage partners are drawn at random, and a number is
            refused.
        max_mixed: mix at most this many pairs of a batch, a random subset; None means no limit.
        generator: the source of all random numbers; None creates one, seeded like torch's.

    Raise a ValueError that says why for a combination without a mixed form and for an argument out of range. There is
    no second derivative: a gradient with `create_graph=True` raises a RuntimeError.

    >>> import baselines
    >>> criterion = Metrix(baselines.create("contrastive"), pairs="pos-neg")
    >>> embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> sorted(criterion.terms(embeddings, labels))
    ['clean', 'mixed']
    """

    def __init__(
        self,
        loss: Loss | Rival,
        at: str = "embedding",
        stage: str | int | None = None,
        pairs: str = "alternate",
        weight: float = 0.4,
        alpha: float = 2.0,
        renormalize: bool = True,
        lambda_per: str = "batch",
        hardest: int | Literal["all"] | None = None,
        max_mixed: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.at = one_of("at", at, LEVELS)
        self.pairs = one_of("pairs", pairs, (*choose.PAIRS, "alternate"))
        self.weight = within("weight", weight, 0.0)
        self.alpha = within("alpha", alpha, above=0.0)
        self.renormalize = one_of("renormalize", renormalize, (True, False))
        self.lambda_per = one_of("lambda_per", lambda_per, ("batch", "example"))
        self.hardest: int | Literal["all"] | None = hardest if hardest in (None, "all") else whole("hardest", hardest)
        self.max_mixed = max_mixed if max_mixed is None else whole("max_mixed", max_mixed)
        if stage is not None and at != "feature":
            raise ValueError(f"stage={stage!r} belongs to at='feature', not to at={at!r}")
        self.stage = stage
        why_not = refusal(loss, at=at, stage=stage, pairs=pairs, hardest=hardest)
        if why_not:
            raise ValueError(why_not)
        self.loss = cast(Loss, loss)  # such a rival has all that its loss has
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed() & (2**63 - 1))
        self.mixed_rows = 0

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:
        """Return the objective (scalar) of embeddings (n, d) and labels (n,); in eval mode, the clean loss alone."""
        refuse_indices(indices_tuple)
        return self._total(self.terms(embeddings, labels))

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the objective (scalar) of a network on images (n, 3, h, w) and integer labels (n,), at any level."""
        return self._total(self.terms(model, images, labels))

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["clean"] + self.weight * terms["mixed"] if "mixed" in terms else terms["clean"]

    def terms(self, *inputs: Any) -> dict[str, Tensor]:
        """Return the two means before they are added: {"clean": ℓ, "mixed": ℓ̃}.

        `inputs` are (embeddings, labels) or (model, images, labels). Without a mixed term (eval mode, weight 0), the
        result holds only "clean".
        """
        self.mixed_rows = 0
        mixing = self.training and self.weight > 0
        if len(inputs) == 2:
            if mixing and self.at != "embedding":
                raise ValueError(f"at={self.at!r} mixes inside the network: call objective(model, images, labels)")
            return self._at_embedding(*inputs, mixing)
        model, images, labels = inputs
        if not mixing or self.at == "embedding":
            return self._at_embedding(model(images), labels, mixing)
        check_labels(labels, len(images), images.device)
        labels = labels.cpu()  # which pairs there are follows from them without a wait
        if self.at == "input":
            return self._at_input(model, images, labels)
        stage, is_last = network.find_stage(self.stage, network.staged(model))
        if is_last:
            return self._at_last_map(model, stage, images, labels)
        return self._at_stage(model, stage, images, labels)

    def mixed_loss(
        self, embeddings: Tensor, labels: Tensor, pairs: str | None = None, lam: float | Tensor | None = None
    ) -> Tensor:
        """Return ℓ̃ alone (scalar, unweighted) at the embedding level.

        The pair type and λ (one number, or one for each pair (n, n)) are drawn where they are None.
        """
        if pairs is not None:
            one_of("pairs", pairs, choose.PAIRS)
            why_not = refusal(self.loss, pairs=pairs, hardest=self.hardest)
            if why_not:
                raise ValueError(why_not)
        if lam is not None and not isinstance(lam, Tensor):
            within("lam", lam, 0.0, 1.0)
        with full_precision(embeddings.device):
            return self._mixed(self.loss.batch(embeddings, labels), pairs, lam)

    def means(self) -> dict[str, float]:
        """Return the counts of the loss, see `baselines.counts.Counted.means`."""
        return self.loss.means()

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings of the loss, see `baselines.counts.Counted.warnings`."""
        return self.loss.warnings()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the learnable tensors of the loss as optimiser groups, each with lr times its own multiplier."""
        return self.loss.parameter_groups(lr)

    def get_extra_state(self) -> Tensor:
        """Return the state of the generator (uint8), so that a resumed training draws the same numbers."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore a state that `get_extra_state` returned."""
        self.generator.set_state(state.cpu())

    def effective(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Return the settings that the defaults resolve to: the stage, the pair types and the partners.

        at="feature" needs `model`, whose stages it reads. "hardest" is "all", a number or "one at random".
        """
        types = self._alternatives() if self.pairs == "alternate" else (self.pairs,)
        stage, is_last = None, True
        if self.at == "feature":
            stage, is_last = network.find_stage(self.stage, network.staged(model))
        hardest = self._hardest_of(types[0]) if is_last else "one at random"
        return {"stage": stage, "pairs": types, "hardest": hardest, "max_mixed": self.max_mixed}

    def _hardest_of(self, pairs: str) -> int | Literal["all"]:
        if self.hardest is not None:
            return self.hardest
        one_side = pairs in ("pos-pos", "neg-neg")
        return "all" if self.at == "embedding" or one_side else 1

    def _alternatives(self) -> tuple[str, ...]:
        return ("pos-neg",) if self.loss.anchors == "proxies" else ("pos-neg", "anc-neg")

    def _at_embedding(self, embeddings: Tensor, labels: Tensor, mixing: bool) -> dict[str, Tensor]:
        with full_precision(embeddings.device):
            batch = self.loss.batch(embeddings, labels)
            terms = {"clean": self.loss.clean(batch)}
            if mixing:
                terms["mixed"] = self._mixed(batch)
        return terms

    def _mixed(self, batch: Batch, pairs: str | None = None, lam: float | Tensor | None = None) -> Tensor:
        drawn = self._draw_type()
        pairs = pairs or drawn
        n = len(batch.labels)
        with_proxies = self.loss.anchors == "proxies" and pairs == "anc-neg"
        shape = tuple(batch.similarities.shape) if with_proxies else (n, n)
        lam = self._draw_lambda(shape) if lam is None else lam
        if isinstance(lam, Tensor):
            if lam.ndim and lam.shape != shape:
                raise ValueError(f"lam must be a number or {shape}, not {tuple(lam.shape)}")
            lam = lam.to(batch.similarities.dtype)  # λ is rounded also where it is one number
            lam = moved(lam, batch.similarities.device) if lam.ndim else lam.item()
        chosen = None
        hardest = None if self.hardest == "all" else self.hardest
        if hardest is not None or self.max_mixed is not None:
            if with_proxies:
                chosen = self._narrow(self.loss.host_sides(batch)[1], batch, batch.similarities, hardest)
            else:
                chosen = self._narrow(self._eligible(pairs, batch.host_labels), batch, None, hardest)
        return mixed_loss(self.loss, batch, pairs, lam, chosen, self.renormalize)

    def _at_input(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not images.is_floating_point():
            raise TypeError(f"at='input' mixes normalised images, a floating-point tensor, not {images.dtype}")
        return self._through(model, model(images), images, model, labels)

    def _at_last_map(self, model: nn.Module, stage: str, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        staged = network.staged(model)
        maps = staged.forward_to(stage, images)
        embeddings = staged.forward_from(stage, maps)
        return self._through(model, embeddings, maps, lambda mixed: staged.forward_from(stage, mixed), labels)

    def _through(
        self,
        model: nn.Module,
        embeddings: Tensor,
        rows: Tensor,
        rest: Callable[[Tensor], Tensor],
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """Return the clean and the mixed loss; mixed rows pass through the `rest` of the network a second time."""
        with full_precision(embeddings.device):
            batch = self.loss.batch(embeddings, labels)
            clean = self.loss.clean(batch)
        pairs = self._draw_type()
        hardest = self._hardest_of(pairs)
        hardest = None if hardest == "all" else hardest
        lam = self._draw_lambda((len(labels), len(labels)))
        self._need_two_classes(pairs, labels)
        chosen = self._narrow(self._eligible(pairs, labels), batch, None, hardest)
        self.mixed_rows = len(chosen)
        if not len(chosen):
            return {"clean": clean, "mixed": clean.new_zeros(())}
        lam = moved(lam, rows.device) if isinstance(lam, Tensor) else lam

        def embed(i: Tensor, j: Tensor) -> Tensor:
            return rest(network.mix(rows, i, j, _of_pairs(lam, i, j)))

        with network.isolated(model, rows, self.generator):
            mixed = network.in_chunks(model, embed, *chosen.on(rows.device))
        return {"clean": clean, "mixed": self._embedded(batch, mixed, pairs, lam, chosen)}

    def _at_stage(self, model: nn.Module, stage: str, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.hardest is not None:
            raise ValueError(no_hardest(self.hardest, stage))
        pairs = self._draw_type()
        lam = self._draw_lambda((len(labels), len(labels)))
        self._need_two_classes(pairs, labels)
        chosen = choose.Chosen.of(choose.keep_one_partner(self._eligible(pairs, labels), self.generator))
        if self.max_mixed is not None:
            chosen = choose.keep_random(chosen, self.max_mixed, self.generator)
        self.mixed_rows = len(chosen)
        if not len(chosen):
            return self._at_embedding(model(images), labels, mixing=False)
        first, second = chosen.on(images.device)
        lam = moved(lam, images.device) if isinstance(lam, Tensor) else lam
        embeddings, mixed = network.staged(model).forward_joint(
            stage, images, lambda maps: network.mix(maps, first, second, _of_pairs(lam, first, second))
        )
        with full_precision(embeddings.device):
            batch = self.loss.batch(embeddings, labels)
            clean = self.loss.clean(batch)
        return {"clean": clean, "mixed": self._embedded(batch, mixed, pairs, lam, chosen)}

    def _embedded(
        self, batch: Batch, mixed: Tensor, pairs: str, lam: float | Tensor, chosen: choose.Chosen
    ) -> Tensor:
        with full_precision(mixed.device):
            vectors = unit(mixed)[0].to(batch.embeddings.dtype)
            lam = _of_pairs(lam, *chosen.on(mixed.device))
            return embedded_loss(self.loss, batch, vectors, pairs, lam, chosen)

    def _draw_type(self) -> str:
        return choose.draw_type(self.pairs, self._alternatives(), self.generator)

    def _draw_lambda(self, shape: tuple[int, ...]) -> float | Tensor:
        if self.lambda_per == "batch":
            return choose.draw_lambda(self.alpha, (), self.generator).item()
        return choose.draw_lambda(self.alpha, shape, self.generator)

    def _eligible(self, pairs: str, labels: Tensor) -> Tensor:
        proxies = len(self.loss.proxies) if self.loss.anchors == "proxies" else None
        return choose.eligible(pairs, labels, self.loss.mixed, proxies)

    def _narrow(self, mask: Tensor, batch: Batch, similarities: Tensor | None, hardest: int | None) -> choose.Chosen:
        if hardest is None:
            chosen = choose.Chosen.of(mask)
        else:
            if similarities is None:
                z = batch.embeddings.detach()
                similarities = batch.similarities if not self.loss.learns_classes else cosine(z, z)
            chosen = choose.keep_hardest(mask, similarities, hardest)
        return chosen if self.max_mixed is None else choose.keep_random(chosen, self.max_mixed, self.generator)

    def _need_two_classes(self, pairs: str, labels: Tensor) -> None:
        if pairs != "pos-pos" and len(labels) and (labels == labels[0]).all():
            raise ValueError(
                f"nothing to mix at={self.at!r}: the batch of {len(labels)} holds one class "
                f"(label {labels[0].item()}), and pairs={self.pairs!r} needs at least two"
            )


def _of_pairs(lam: float | Tensor, first: Tensor, second: Tensor) -> float | Tensor:
    return lam[first, second] if isinstance(lam, Tensor) else lam
