"""Which examples are mixed, with which partners and how much: pair types, hardest partners, random subsets, λ.

A mixed example is an ordered pair (i, j), λ multiplying i. Venkataramanan et al., ICLR 2022.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

PAIRS = ("pos-neg", "anc-neg", "pos-pos", "neg-neg")


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
    """Return the pairs (i, j) that at least one anchor uses, (n, n) bool.

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


def keep_hardest(mask: Tensor, similarities: Tensor, other: Tensor, hardest: int) -> Tensor:
    """Keep the pairs in `mask` whose j is one of the `hardest` most similar examples of other classes for its i.

    similarities and other (where i and j differ in class) have the shape of mask. Among equals, the lower index
    counts as more similar.
    """
    ranked = similarities.detach().masked_fill(~other, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    near = torch.zeros_like(mask).scatter_(1, ranked[:, :hardest], True)
    return mask & near


def keep_random(mask: Tensor, at_most: int, generator: torch.Generator) -> Tensor:
    """Keep a uniformly random subset of `at_most` of the pairs in `mask`."""
    places = mask.flatten().nonzero().flatten()
    order = torch.randperm(len(places), generator=generator, device=generator.device).to(mask.device)
    kept = torch.zeros_like(mask).flatten()
    kept[places[order[:at_most]]] = True
    return kept.view_as(mask)


def keep_one_partner(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Keep one uniformly random j for each i among the pairs in `mask`."""
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
