"""Mixed examples among the candidates of clean anchors: ℓ̃(a) is the loss over the mixed set V(a).

At the embedding level their similarities follow from the clean ones; elsewhere the network has embedded them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from baselines.form import Batch, Loss
from baselines.numerics import cosine, softplus
from baselines.weights import Weights, belonging
from metrix.chunks import CHUNK, Rows, mean_in_chunks, slices
from metrix.pairs import uses
from metrix.sets import MixedSets, Places, lists


def mixed_candidates(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None, renormalize: bool
) -> Tensor:
    """The mean loss (scalar) of all anchors over their mixed sets; 0 if all are empty.

    `lam` is a number or one for each pair (i, j); `chosen` (bool, one for each pair) restricts the pairs, None means
    all.
    """
    if not renormalize and loss.exponential and pairs == "pos-neg" and chosen is None and not isinstance(lam, Tensor):
        return _factorised(loss, batch, lam)
    similarities, mixed_sets = sets_of_anchors(loss, batch, pairs, lam, chosen)
    if mixed_sets is None:
        return batch.similarities.new_zeros(())
    inverse = mixed_sets.inverse_norms(loss, batch, similarities) if renormalize else None

    def losses(rows: Rows | None, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        sets = mixed_sets if rows is None else mixed_sets.rows(rows)
        mixed = sets.similarities(similarities, inverse)
        return loss_of_sets(loss, mixed, sets.belongs(mixed), pairs, sets.label())

    by_rows = (True, mixed_sets.places.own)
    return mean_in_chunks(losses, _chunks(similarities, mixed_sets), (similarities, inverse), by_rows)


def loss_of_sets(loss: Loss, similarities: Tensor, belongs: Tensor, pairs: str, lam: float | Tensor) -> Tensor:
    """The loss (a,) of anchors over mixed sets with these similarities (a, …) and logarithms of belonging."""
    y = {"pos-pos": 1.0, "neg-neg": 0.0}.get(pairs, lam)
    return loss.formula(similarities, *Weights.of_label(belongs, y, similarities.shape))


def sets_of_anchors(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None
) -> tuple[Tensor, MixedSets | None]:
    """The similarities (a, n) of the anchors and their mixed sets, None if nobody has any.

    All examples are anchors, but only the proxies whose mixed set is not empty, since the mean runs over these.
    """
    similarities, belongs = batch.similarities, loss.belonging(batch)[1]
    positive, negative = loss.sides(batch)
    if loss.anchors == "proxies":
        used = _not_empty(pairs, positive, negative, chosen)
        if not used.all():
            rows = used.nonzero().flatten()
            similarities, positive, belongs = (x.index_select(0, rows) for x in (similarities, positive, belongs))
            if pairs == "anc-neg":
                lam, chosen = (x[rows] if isinstance(x, Tensor) else x for x in (lam, chosen))
    index = valid = None
    if pairs in ("pos-neg", "pos-pos"):
        index, valid = lists(positive)
    if len(similarities) == 0 or (index is not None and index.shape[1] == 0):
        return similarities, None
    valid = None if valid is None else belonging(valid, similarities.dtype)
    chosen = None if chosen is None else belonging(chosen, similarities.dtype)
    places = Places(index, index if pairs == "pos-pos" else None, own=pairs == "anc-neg")
    conditions = {"pos-neg": (valid, belongs), "pos-pos": (valid, valid), "neg-neg": (belongs, belongs)}
    first, second = conditions.get(pairs, (None, belongs))
    distinct = pairs in ("pos-pos", "neg-neg")
    return similarities, MixedSets(places, first, second, chosen, distinct, lam)


def _not_empty(pairs: str, positive: Tensor, negative: Tensor, chosen: Tensor | None) -> Tensor:
    """Which anchors have a mixed example (a,), from their positives and negatives (a, n) and the chosen pairs."""
    if pairs == "anc-neg":
        return (negative if chosen is None else negative & chosen).any(1)
    first = negative if pairs == "neg-neg" else positive
    second = positive if pairs == "pos-pos" else negative
    if chosen is not None:
        return ((first.float() @ chosen.float() > 0) & second).any(1)
    if pairs == "pos-neg":
        return first.any(1) & second.any(1)
    return first.sum(1) > 1


class _Sum(NamedTuple):
    """Similarities (a, f, s) that are sums of first (a, f) and second (a, s), not added up."""

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)


class _Factors(Weights):
    """Weights y for all pairs of members among first (a, f) and second (a, s), to go with a `_Sum`.

    Σ_f Σ_s y e^{c(x_f + x_s)} = y · Σ_f e^{c x_f} · Σ_s e^{c x_s}, so (a, f, s) numbers are never formed.
    """

    def __init__(self, first: Weights, second: Weights, y: float):
        self.first, self.second, self.y = first, second, y

    def some(self) -> Tensor:
        return self.first.some() & self.second.some() & (self.y > 0)

    def log_sum_exp(self, x: _Sum, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        first, second = self.first.log_sum_exp(x.first, slope), self.second.log_sum_exp(x.second, slope)
        log_y = math.log(self.y) if self.y > 0 else -math.inf
        logarithm = first + second + (log_y - slope * centre)
        return softplus(logarithm) if plus_one else logarithm


def _factorised(loss: Loss, batch: Batch, lam: float) -> Tensor:
    """pos-neg without re-normalisation, for a loss that meets its similarities in log_sum_exp only."""
    similarities, sides = batch.similarities, loss.belonging(batch)
    if loss.anchors == "proxies":
        used = _not_empty("pos-neg", *loss.sides(batch), None).nonzero().flatten()
        similarities, *sides = (x.index_select(0, used) for x in (similarities, *sides))
    if len(similarities) == 0:
        return similarities.new_zeros(())
    first, second = (Weights(side, 1.0, side.shape) for side in sides)
    x = _Sum(lam * similarities, (1 - lam) * similarities)
    return loss.formula(x, _Factors(first, second, lam), _Factors(first, second, 1 - lam)).mean()


def _chunks(similarities: Tensor, mixed_sets: MixedSets) -> list[Rows]:
    """Rows of anchors to be computed together; in neg-neg, whose masks are large, those with the same negatives."""
    places, columns = mixed_sets.places, similarities.shape[1]
    if places.own or places.first is not None:
        firsts = 1 if places.own else places.first.shape[1]
        seconds = columns if places.second is None else places.second.shape[1]
        return slices(len(similarities), firsts * seconds)
    chunks = slices(len(similarities), columns**2)
    if len(chunks) == 1:
        return chunks
    group = (mixed_sets.second == 0).unique(dim=0, return_inverse=True)[1]
    at_once = max(8, chunks[0].stop)
    return [part for g in range(int(group.max()) + 1) for part in (group == g).nonzero().flatten().split(at_once)]


def embedded_candidates(
    loss: Loss, batch: Batch, mixed: Tensor, pairs: str, lam: float | Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """The same mean loss (scalar) where the mixed examples (first, second), (m,) each, are embedded, `mixed` (m, d).

    `lam` is a number or one for each mixed example (m,).
    """
    examples = loss.anchors == "examples"
    classes = batch.labels if examples else torch.arange(len(loss.proxies), device=batch.labels.device)
    members = uses(pairs, first, second, batch.labels, classes, examples)
    anchors = batch.embeddings
    if not examples:
        used = members.any(1)
        anchors, members = batch.proxies[used], members[used]
    if len(members) == 0:
        return batch.similarities.new_zeros(())
    belongs = belonging(members, mixed.dtype)

    def losses(rows: Rows | None, anchors: Tensor, mixed: Tensor) -> Tensor:
        return loss_of_sets(loss, cosine(anchors, mixed), belongs if rows is None else belongs[rows], pairs, lam)

    # each chunk costs a matrix product with all mixed embeddings, so there are few
    chunks = slices(len(anchors), len(mixed), at_once=32 * CHUNK)
    return mean_in_chunks(losses, chunks, (anchors, mixed), (True, False))
