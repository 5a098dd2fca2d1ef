"""Mixed examples among the candidates of clean anchors: ℓ̃(a) is the loss over the mixed set V(a).

At the embedding level their similarities follow from the clean ones. At other levels the network embeds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from baselines.chunks import CHUNK, Rows, mean_in_chunks, slices
from baselines.form import Batch, Loss, moved
from baselines.numerics import cosine, softplus
from baselines.weights import Weights, log_mask
from metrix.pairs import Chosen, groups, in_mixed_sets
from metrix.sets import MixedSets, Places, lists


def mixed_candidates(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Chosen | None, renormalize: bool
) -> Tensor:
    """Return the mean loss (scalar) of all anchors over their mixed sets; 0 if all sets are empty.

    `lam` is one number, or one for each pair (i, j). `chosen` restricts the pairs; None keeps all.
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
        return loss_of_sets(loss, mixed, sets.log_mask(mixed), pairs, sets.label())

    by_rows = (True, mixed_sets.places.own)
    return mean_in_chunks(losses, _chunks(similarities, mixed_sets), (similarities, inverse), by_rows)


def loss_of_sets(loss: Loss, similarities: Tensor, members: Tensor, pairs: str, lam: float | Tensor) -> Tensor:
    """Return the loss (a,) of anchors over mixed sets with these similarities (a, …); `members` is a log mask."""
    y = {"pos-pos": 1.0, "neg-neg": 0.0}.get(pairs, lam)
    return loss.formula(similarities, *Weights.of_label(members, y, similarities.shape))


def sets_of_anchors(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Chosen | None
) -> tuple[Tensor, MixedSets | None]:
    """Return the similarities (a, n) of the anchors, and their mixed sets, None if all are empty.

    All examples are anchors. Proxies are anchors only if their mixed set is not empty, because the mean runs over
    these.
    """
    similarities, negatives = batch.similarities, loss.log_sides(batch)[1]
    positive, negative = loss.host_sides(batch)
    device, dtype = similarities.device, similarities.dtype
    kept = None
    if chosen is not None:
        matrix = similarities if pairs == "anc-neg" else similarities.new_empty(1).expand(2 * [similarities.shape[1]])
        kept = log_mask(chosen.mask(matrix), dtype)
    if loss.anchors == "proxies":
        used = _not_empty(pairs, positive, negative, chosen)
        if not used.all():
            rows = used.nonzero().flatten()
            positive, negative = positive.index_select(0, rows), negative.index_select(0, rows)
            rows = moved(rows, device)
            similarities, negatives = similarities.index_select(0, rows), negatives.index_select(0, rows)
            if pairs == "anc-neg":
                lam = lam[rows] if isinstance(lam, Tensor) else lam
                kept = None if kept is None else kept[rows]
    index = valid = None
    if pairs in ("pos-neg", "pos-pos"):
        index, valid = lists(positive, device)
    if len(similarities) == 0 or (index is not None and index.shape[1] == 0):
        return similarities, None
    valid = None if valid is None else log_mask(valid, dtype)
    places = Places(index, index if pairs == "pos-pos" else None, own=pairs == "anc-neg")
    members = {"pos-neg": (valid, negatives), "pos-pos": (valid, valid), "neg-neg": (negatives, negatives)}
    first, second = members.get(pairs, (None, negatives))
    distinct = pairs in ("pos-pos", "neg-neg")
    return similarities, MixedSets(places, first, second, kept, distinct, lam, negative)


def _not_empty(pairs: str, positive: Tensor, negative: Tensor, chosen: Chosen | None) -> Tensor:
    """Return which proxies (c,) have a mixed example, given their positives and negatives (c, n) and chosen pairs.

    Everything is in host memory. The chosen pairs are eligible ones, so their second examples matter in neg-neg only.
    """
    if chosen is None:
        if pairs == "anc-neg":
            return negative.any(1)
        if pairs == "pos-neg":
            return positive.any(1) & negative.any(1)
        return (negative if pairs == "neg-neg" else positive).sum(1) > 1
    if pairs == "neg-neg":
        return (negative[:, chosen.first] & negative[:, chosen.second]).any(1)
    first = torch.zeros(len(positive) if pairs == "anc-neg" else positive.shape[1], dtype=torch.bool)
    first[chosen.first] = True
    return first if pairs == "anc-neg" else (positive & first).any(1)


class _Sum(NamedTuple):
    """Similarities (a, f, s) as the two terms of a sum, first (a, f) and second (a, s), which is never computed."""

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)


class _Factors(Weights):
    """The weight y of all pairs of members of first (a, f) and second (a, s), for similarities that are a `_Sum`.

    Σ_f Σ_s y e^{c(x_f + x_s)} = y · Σ_f e^{c x_f} · Σ_s e^{c x_s}, so (a, f, s) numbers are never computed.
    """

    def __init__(self, first: Weights, second: Weights, y: float):
        self.first, self.second, self.y = first, second, y

    def any(self) -> Tensor:
        return self.first.any() & self.second.any() & (self.y > 0)

    def log_sum_exp(  # pyright: ignore[reportIncompatibleMethodOverride] (only `_factorised` creates one)
        self, x: _Sum, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False
    ) -> Tensor:
        first, second = self.first.log_sum_exp(x.first, slope), self.second.log_sum_exp(x.second, slope)
        log_y = math.log(self.y) if self.y > 0 else -math.inf
        logarithm = first + second + (log_y - slope * centre)
        return softplus(logarithm) if plus_one else logarithm


def _factorised(loss: Loss, batch: Batch, lam: float) -> Tensor:
    """Return the mean loss of pos-neg without re-normalisation, for a loss that is `exponential`."""
    similarities = batch.similarities
    positive, negative = loss.log_sides(batch)
    if loss.anchors == "proxies":
        used = _not_empty("pos-neg", *loss.host_sides(batch), None).nonzero().flatten()
        used = moved(used, similarities.device)
        similarities, positive, negative = (x.index_select(0, used) for x in (similarities, positive, negative))
    if len(similarities) == 0:
        return similarities.new_zeros(())
    first, second = Weights(positive, 1.0, positive.shape), Weights(negative, 1.0, negative.shape)
    x: Any = _Sum(lam * similarities, (1 - lam) * similarities)  # the formula only hands it on to log_sum_exp
    return loss.formula(x, _Factors(first, second, lam), _Factors(first, second, 1 - lam)).mean()


def _chunks(similarities: Tensor, mixed_sets: MixedSets) -> Sequence[Rows]:
    """Return the rows of anchors to compute together. In neg-neg, whose masks are large, they share negatives."""
    places, columns = mixed_sets.places, similarities.shape[1]
    if places.own or places.first is not None:
        firsts = 1 if places.own or places.first is None else places.first.shape[1]
        seconds = columns if places.second is None else places.second.shape[1]
        return slices(len(similarities), firsts * seconds)
    chunks = slices(len(similarities), columns**2)
    if len(chunks) == 1:
        return chunks
    group = groups(mixed_sets.negatives)
    at_once = max(8, chunks[0].stop)
    together = [moved((group == g).nonzero().flatten(), similarities.device) for g in range(int(group.max()) + 1)]
    return [rows[k : k + at_once] for rows in together for k in range(0, len(rows), at_once)]


def embedded_candidates(
    loss: Loss, batch: Batch, mixed: Tensor, pairs: str, lam: float | Tensor, chosen: Chosen
) -> Tensor:
    """Return the same mean loss (scalar) for mixed examples that are embedded, `mixed` (m, d).

    They mix the pairs `chosen`. `lam` is one number, or one for each of them (m,).
    """
    anchors, classes = batch.embeddings, batch.labels
    if batch.proxies is not None and loss.anchors == "proxies":
        classes = moved(_not_empty(pairs, *loss.host_sides(batch), chosen).nonzero().flatten(), classes.device)
        anchors = batch.proxies.index_select(0, classes)
    if len(anchors) == 0:
        return batch.similarities.new_zeros(())
    members = in_mixed_sets(
        pairs, *chosen.on(classes.device), batch.labels, classes, examples=loss.anchors == "examples"
    )
    logs = log_mask(members, mixed.dtype)

    def losses(rows: Rows | None, anchors: Tensor, mixed: Tensor) -> Tensor:
        return loss_of_sets(loss, cosine(anchors, mixed), logs if rows is None else logs[rows], pairs, lam)

    # Each chunk costs a matrix product with all mixed embeddings, so there are few of them.
    chunks = slices(len(anchors), len(mixed), at_once=32 * CHUNK)
    return mean_in_chunks(losses, chunks, (anchors, mixed), (True, False))
