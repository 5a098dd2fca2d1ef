"""Which examples are mixed, with whom, and how much: pair types, hardest partners, random subsets, λ.

A mixed example is an ordered pair (i, j), λ multiplying i. Venkataramanan et al., ICLR 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS = ("pos-neg", "anc-neg", "pos-pos", "neg-neg")


def draw_type(pairs: str, alternatives: tuple[str, ...], generator: torch.Generator) -> str:
    """The pair type of this step: `pairs` itself or, for `alternate`, one of the alternatives with equal chances.

    The coin is tossed even if there is one alternative, so that every loss sees the same λ.
    """
    if pairs != "alternate":
        return pairs
    coin = torch.randint(2, (), generator=generator, device=generator.device).item()
    return alternatives[coin % len(alternatives)]


def draw_lambda(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """λ ~ Beta(α, α) of the given shape, float64, on the generator's device.

    λ = G/(G + G') for two gamma variables. They are drawn as G(α) = G(α+1)·U^{1/α} and divided as logarithms, since
    both underflow for small α.
    """
    options = {"dtype": torch.float64, "device": generator.device}
    gamma = torch._standard_gamma(torch.full((2, *shape), alpha + 1.0, **options), generator=generator)
    uniform = torch.rand((2, *shape), generator=generator, **options)
    logs = gamma.log_().add_(uniform.log_(), alpha=1 / alpha)
    return torch.sigmoid(logs[0] - logs[1])


def eligible(pairs: str, labels: Tensor, mixed: str, num_proxies: int | None = None) -> Tensor:
    """The pairs (i, j) that at least one anchor uses, (n, n) bool.

    `mixed` says whether a mixed example is among the "candidates" of clean anchors or one of the "anchors" itself;
    `num_proxies` is the number of proxies where these are the anchors, None where the examples are.
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
    classes = len(labels.unique()) if num_proxies is None else num_proxies
    return distinct & torch.where(same, classes > 1, classes > 2)


def keep_hardest(mask: Tensor, similarities: Tensor, other: Tensor, hardest: int) -> Tensor:
    """Of the pairs in `mask`, those whose j is one of the `hardest` most similar examples of other classes for its i.

    similarities and other (where i and j differ in class) have the shape of mask; of equals, the lower index is
    nearer.
    """
    ranked = similarities.detach().masked_fill(~other, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    near = torch.zeros_like(mask).scatter_(1, ranked[:, :hardest], True)
    return mask & near


def keep_some(mask: Tensor, at_most: int, generator: torch.Generator) -> Tensor:
    """A uniformly random subset of `at_most` of the pairs in `mask`."""
    places = mask.flatten().nonzero().flatten()
    order = torch.randperm(len(places), generator=generator, device=generator.device).to(mask.device)
    kept = torch.zeros_like(mask).flatten()
    kept[places[order[:at_most]]] = True
    return kept.view_as(mask)


def keep_one(mask: Tensor, generator: torch.Generator) -> Tensor:
    """For each i one uniformly random j of the pairs in `mask`."""
    scores = torch.rand(mask.shape, generator=generator, device=generator.device, dtype=torch.float64).to(mask.device)
    chosen = scores.masked_fill_(~mask, -1.0).argmax(1, keepdim=True)
    return mask & torch.zeros_like(mask).scatter_(1, chosen, True)


def uses(pairs: str, first: Tensor, second: Tensor, labels: Tensor, anchors: Tensor, examples: bool) -> Tensor:
    """Which anchors (a,) have which mixed examples (first, second), both (m,), in their set V: (a, m) bool.

    `anchors` are the labels of the anchors; `examples` says that they are the examples of the batch, in order, which
    are never their own positives or negatives.
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
