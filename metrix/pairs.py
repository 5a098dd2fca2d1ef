"""Which examples are mixed, with which partners and how much: pair types, hardest partners, random subsets, λ.

A mixed example is an ordered pair (i, j), λ multiplying i. Venkataramanan et al., ICLR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from baselines.form import moved

PAIRS = ("pos-neg", "anc-neg", "pos-pos", "neg-neg")


@dataclass(frozen=True)
class Chosen:
    """The pairs (first, second) to mix, (m,) each, in the order of rows, then columns.

    They are in host memory, so that shapes follow from them without a wait; `second` may be on the device of the
    similarities that it follows from.
    """

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Chosen:
        """Return the pairs in a mask (bool) in host memory."""
        return cls(*mask.nonzero(as_tuple=True))

    def __len__(self) -> int:
        return len(self.first)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return both on a device."""
        return moved(self.first, device), moved(self.second, device)

    def mask(self, like: Tensor) -> Tensor:
        """Return where the pairs are in a matrix (bool) of the shape and the device of `like`."""
        return torch.zeros_like(like, dtype=torch.bool).index_put_(
            self.on(like.device), like.new_ones((), dtype=torch.bool)
        )


def draw_type(pairs: str, alternatives: tuple[str, ...], generator: torch.Generator) -> str:
    """Return the pair type of this step: `pairs` itself or, for "alternate", a random one of the alternatives.

    "alternate" draws a number even if there is only one alternative, so that every loss sees the same λ.
    """
    if pairs != "alternate":
        return pairs
    coin = int(torch.randint(2, (), generator=generator, device=generator.device))
    return alternatives[coin % len(alternatives)]


def draw_lambda(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw λ ~ Beta(α, α) of the given shape, float64, on the generator's device.

    λ = G/(G + G') for two gamma variables. They are drawn as G(α) = G(α+1)·U^{1/α} and divided as logarithms, because
    both underflow for small α.
    """
    device = generator.device
    shapes = torch.full((2, *shape), alpha + 1.0, dtype=torch.float64, device=device)
    # The public torch.distributions takes no generator.
    gamma = torch._standard_gamma(shapes, generator=generator)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    uniform = torch.rand((2, *shape), generator=generator, dtype=torch.float64, device=device)
    logs = gamma.log_().add_(uniform.log_(), alpha=1 / alpha)
    return torch.sigmoid(logs[0] - logs[1])


def eligible(pairs: str, labels: Tensor, mixed: str | None, num_proxies: int | None = None) -> Tensor:
    """Return the pairs (i, j) that at least one anchor uses, (n, n) bool, from labels in host memory.

    `mixed` says whether a mixed example is among the "candidates" of clean anchors or is itself one of the "anchors".
    `num_proxies` is the number of proxies if they are the anchors, None if the examples are.
    """
    same = labels[:, None] == labels
    if mixed == "anchors" or pairs == "anc-neg":
        return ~same
    sizes = same.sum(1, keepdim=True)
    if pairs == "pos-neg":
        return ~same & (sizes > 1) if num_proxies is None else ~same
    distinct = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if pairs == "pos-pos":
        return same & distinct & (sizes > (2 if num_proxies is None else 1))
    classes = int(groups(labels).max()) + 1 if num_proxies is None else num_proxies
    return distinct & torch.where(same, classes > 1, classes > 2)


def groups(rows: Tensor) -> Tensor:
    """Return a number (n,) for each row of `rows` (n, …), from 0 up, the same for equal rows."""
    return cast(Tensor, rows.unique(dim=0, return_inverse=True)[1])  # pyright: ignore[reportUnknownMemberType] (untyped)


def keep_hardest(mask: Tensor, similarities: Tensor, hardest: int) -> Chosen:
    """Keep the pairs in `mask` whose j is one of the `hardest` most similar ones in the mask for its i.

    The mask is in host memory and has the shape of the similarities. Among equals, the lower index counts as more
    similar.
    """
    outside = moved(~mask, similarities.device)
    ranked = similarities.detach().masked_fill(outside, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    kept = torch.arange(min(hardest, mask.shape[1])) < mask.sum(1, keepdim=True)
    columns = ranked[:, :hardest].masked_fill(moved(~kept, ranked.device), mask.shape[1]).sort(dim=1).values
    places = moved(kept.flatten().nonzero().flatten(), ranked.device)
    return Chosen(kept.nonzero()[:, 0], columns.flatten().index_select(0, places))


def keep_random(pairs: Chosen, at_most: int, generator: torch.Generator) -> Chosen:
    """Keep a uniformly random subset of `at_most` of the pairs."""
    order = torch.randperm(len(pairs), generator=generator, device=generator.device)[:at_most]
    kept = order.cpu().sort().values
    return Chosen(pairs.first[kept], pairs.second.index_select(0, moved(kept, pairs.second.device)))


def keep_one_partner(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Keep one uniformly random j for each i among the pairs in `mask`, which is in host memory."""
    scores = torch.rand(mask.shape, generator=generator, device=generator.device, dtype=torch.float64).to(mask.device)
    chosen = scores.masked_fill_(~mask, -1.0).argmax(1, keepdim=True)
    return mask & torch.zeros_like(mask).scatter_(1, chosen, True)


def in_mixed_sets(
    pairs: str, first: Tensor, second: Tensor, labels: Tensor, anchors: Tensor, examples: bool
) -> Tensor:
    """Return which mixed examples (first, second), both (m,), are in the mixed set V of which anchor: (a, m) bool.

    `anchors` (a,) are the labels of the anchors. `examples` says that the anchors are the examples of the batch, in
    order; an example is never its own positive or negative.
    """
    same_first = anchors[:, None] == labels[first]
    same_second = anchors[:, None] == labels[second]
    if examples:
        places = torch.arange(len(anchors), device=labels.device)[:, None]
        if pairs == "anc-neg":
            return (places == first) & ~same_second
        is_first, is_second = places == first, places == second
    else:
        is_first = is_second = torch.zeros_like(same_first)
    if pairs == "pos-neg":
        return same_first & ~is_first & ~same_second
    if pairs == "pos-pos":
        return same_first & ~is_first & same_second & ~is_second
    return ~same_first & ~same_second
