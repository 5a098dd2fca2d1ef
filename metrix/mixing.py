"""Mixed examples as losses see them: their similarities to the anchors, and the weights of their labels.

At the embedding level nothing is mixed. With v = λz_i + (1−λ)z_j, re-normalised,

    s(a, v) = (λ s(a,i) + (1−λ) s(a,j)) / √(λ² + (1−λ)² + 2λ(1−λ) s(i,j)),

so the similarities of all mixed examples follow from those of the clean batch. At the other levels the network has
embedded them, and only their labels are left to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from baselines.form import Batch, Loss
from baselines.numerics import cosine, softplus
from baselines.weights import Listed, Weights
from metrix.pairs import uses

CHUNK = 2**18  # similarities computed at once, about what fits a processor's cache; larger sets are cut into chunks


def mixed_loss(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None, renormalize: bool
) -> Tensor:
    """ℓ̃ (scalar) of a batch at the embedding level: the mean of the loss over the mixed sets of all anchors.

    `lam` is a number or one for each pair (i, j); `chosen` (bool, one for each pair) restricts the mixed examples,
    None means all. 0 if there is nothing to mix.
    """
    if loss.mixed == "anchors":
        return _mixed_anchors(loss, batch, lam, chosen, renormalize)
    if not renormalize and loss.exponential and pairs == "pos-neg" and chosen is None and not isinstance(lam, Tensor):
        return _factorised(loss, batch, lam)
    return _mixed_candidates(loss, batch, pairs, lam, chosen, renormalize)


def embedded_loss(
    loss: Loss, batch: Batch, mixed: Tensor, pairs: str, lam: float | Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """ℓ̃ (scalar) of a batch whose mixed examples (first, second), (m,) each, have unit embeddings `mixed` (m, d).

    `lam` is a number or one for each mixed example (m,).
    """
    labels, dtype = batch.labels, batch.similarities.dtype
    lam = lam.to(labels.device, dtype) if isinstance(lam, Tensor) else lam
    if loss.mixed == "anchors":
        similarities = cosine(mixed, batch.proxies if loss.learns_classes else batch.embeddings)
        if not loss.learns_classes:
            similarities = similarities.scatter(1, torch.stack([first, second], 1), -torch.inf)
        lam = lam[:, None] if isinstance(lam, Tensor) else lam
        weights = _two_classes(loss, batch, _own_class(loss, batch), first, second, lam)
        return loss.formula(similarities, *weights).mean()
    examples = loss.anchors == "examples"
    classes = labels if examples else torch.arange(len(loss.proxies), device=labels.device)
    members = uses(pairs, first, second, labels, classes, examples)
    anchors = batch.embeddings
    if not examples:
        used = members.any(1)
        anchors, members = batch.proxies[used], members[used]
    if len(members) == 0:
        return batch.similarities.new_zeros(())
    return _formula(loss, cosine(anchors, mixed), members, pairs, lam).mean()


def _formula(loss: Loss, similarities: Tensor, members: Tensor, pairs: str, lam: float | Tensor) -> Tensor:
    y = {"pos-pos": 1.0, "neg-neg": 0.0}.get(pairs, lam)
    return loss.formula(similarities, *Weights.of_label(members, y, similarities.shape, similarities.dtype))


# Mixed examples among the candidates of clean anchors


def _mixed_candidates(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None, renormalize: bool
) -> Tensor:
    similarities = cosines = batch.similarities
    positive, negative = loss.sides(batch)
    if pairs in ("pos-pos", "neg-neg"):
        distinct = ~torch.eye(len(batch.labels), dtype=torch.bool, device=similarities.device)
        chosen = distinct if chosen is None else chosen & distinct
    if loss.anchors == "proxies":
        used = _not_empty(pairs, positive, negative, chosen)
        if not used.all():
            used = used.nonzero().flatten()
            similarities, positive, negative = (x.index_select(0, used) for x in (similarities, positive, negative))
            if pairs == "anc-neg":
                lam, chosen = (x[used] if isinstance(x, Tensor) else x for x in (lam, chosen))
        if renormalize:
            cosines = similarities if pairs == "anc-neg" else cosine(batch.embeddings, batch.embeddings)
    places, firsts = _Places(own=pairs == "anc-neg"), negative if pairs == "neg-neg" else None
    if pairs in ("pos-neg", "pos-pos"):
        index, firsts = _lists(positive)
        places = _Places(index, index if pairs == "pos-pos" else None)
        if index.shape[1] == 0:
            return similarities.new_zeros(())
    if len(similarities) == 0:
        return similarities.new_zeros(())
    seconds = firsts if pairs == "pos-pos" else negative
    inverse = _inverse_norms(cosines.detach(), lam) if renormalize else None

    def losses(rows: slice | Tensor | None, similarities: Tensor, cosines: Tensor) -> Tensor:
        def cut(x):
            return x[rows] if rows is not None and isinstance(x, Tensor) else x

        here = places if rows is None else places.rows(rows)
        of_rows = cut if places.own else (lambda x: x)
        first, second = cut(firsts), cut(seconds)
        if isinstance(rows, Tensor):  # anchors with the same negatives
            first, second = first[:1], second[:1]
        y = here.of_pairs(of_rows(lam)) if isinstance(lam, Tensor) else lam
        conditions = (
            None if first is None else first[:, :, None],
            None if second is None else second[:, None, :],
            None if chosen is None else here.of_pairs(of_rows(chosen)),
        )
        members = reduce(and_, (c for c in conditions if c is not None))
        mixed = _Mix.apply(cut(similarities), of_rows(cosines), of_rows(inverse), here, of_rows(lam))
        return _formula(loss, mixed, members, pairs, y)

    chunks = _chunks(similarities, places, negative if pairs == "neg-neg" else None)
    return _total(losses, chunks, similarities, cosines) / len(similarities)


def _not_empty(pairs: str, positive: Tensor, negative: Tensor, chosen: Tensor | None) -> Tensor:
    """Which anchors have a mixed example (a,), from their positives and negatives (a, n) and the chosen pairs."""
    if pairs == "anc-neg":
        return (negative if chosen is None else negative & chosen).any(1)
    first = negative if pairs == "neg-neg" else positive
    second = positive if pairs == "pos-pos" else negative
    if chosen is None:
        return first.any(1) & second.any(1)
    return ((first.float() @ chosen.float() > 0) & second).any(1)


def _lists(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """The columns where each row of mask (a, n) is true, (a, l), and which of them are no padding (None if all)."""
    counts = mask.sum(1)
    rows, columns = mask.nonzero(as_tuple=True)
    longest = int(counts.max()) if len(counts) else 0
    if len(columns) == longest * len(mask):
        return columns.view(len(mask), longest), None
    places = torch.arange(len(columns), device=mask.device) - (counts.cumsum(0) - counts)[rows]
    index = torch.zeros(len(mask), longest, dtype=torch.long, device=mask.device)
    valid = torch.zeros_like(index, dtype=torch.bool)
    index[rows, places], valid[rows, places] = columns, True
    return index, valid


def _inverse_norms(cosines: Tensor, lam: float | Tensor) -> Tensor:
    """1/‖λz_i + (1−λ)z_j‖ from the cosines of i and j, at most 1e6."""
    # λ² + (1−λ)² + 2λ(1−λ)s as a sum of two non-negative terms, which cannot cancel
    square = (cosines + 1).mul_(2 * lam * (1 - lam)).add_((2 * lam - 1) ** 2)
    return square.clamp_(min=1e-12).rsqrt_()


def _slope_of_inverse_norms(inverse: Tensor, lam: float | Tensor) -> Tensor:
    """The derivative of `_inverse_norms` by the cosines; 0 where the inverse norm is cut off."""
    slope = inverse.pow(3).mul_(-lam * (1 - lam))
    if isinstance(lam, Tensor) or abs(2 * lam - 1) < 1e-5:  # elsewhere no norm is so small
        slope.masked_fill_(inverse > 0.999e6, 0.0)
    return slope


@dataclass(frozen=True)
class _Places:
    """Where anchors with similarities (a, n) find the constituents of their mixed examples (a, f, s).

    The columns `first` (a, f) and `second` (a, s); None is all n in order. `own`: the first is the anchor itself, and
    matrices of pairs (i, j) are (a, n).
    """

    first: Tensor | None = None
    second: Tensor | None = None
    own: bool = False

    def rows(self, rows: slice | Tensor) -> _Places:
        """The same for some of the anchors."""
        return _Places(*(None if x is None else x[rows] for x in (self.first, self.second)), self.own)

    def of_pairs(self, matrix: Tensor) -> Tensor:
        """The entries of a matrix (n, n) at the pairs of the mixed examples, broadcastable to (a, f, s)."""
        if self.own:
            return matrix[:, None, :]
        if self.first is None:
            return matrix[None]
        if self.second is None:
            return matrix.index_select(0, self.first.flatten()).view(*self.first.shape, -1)
        return matrix[self.first[:, :, None], self.second[:, None, :]]

    def to_pairs(self, gradient: Tensor, n: int) -> Tensor:
        """The adjoint of `of_pairs`: a gradient (a, f, s) added up where its entries were read."""
        if self.own:
            return gradient[:, 0]
        if self.first is None:
            return gradient.sum(0)
        if self.second is None:
            return gradient.new_zeros(n, n).index_add_(0, self.first.flatten(), gradient.flatten(0, 1))
        place = self.first[:, :, None] * n + self.second[:, None, :]
        return gradient.new_zeros(n * n).index_add_(0, place.flatten(), gradient.flatten()).view(n, n)


class _Mix(Function):
    """The similarities (a, f, s) of anchors to their mixed examples, from those to the clean ones (a, n).

    `cosines` are those of the pairs, and `inverse` their inverse norms, None for no re-normalisation.
    """

    @staticmethod
    def forward(ctx, similarities, cosines, inverse, places: _Places, lam: float | Tensor) -> Tensor:
        second = similarities if places.second is None else similarities.gather(1, places.second)
        if places.own:
            first = similarities.new_ones(len(similarities), 1)
        else:
            first = similarities if places.first is None else similarities.gather(1, places.first)
        first, second = first[:, :, None], second[:, None, :]
        if isinstance(lam, Tensor):
            y = places.of_pairs(lam)
            mixed = first * y + second * (1 - y)
        else:
            mixed = torch.add(first * lam, second, alpha=1 - lam)
        ctx.lam, ctx.places, ctx.shape = lam, places, similarities.shape
        ctx.save_for_backward(None if inverse is None else mixed, inverse)
        return mixed if inverse is None else (mixed * places.of_pairs(inverse)).clamp_(-1.0, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (mixed, inverse), places, lam = ctx.saved_tensors, ctx.places, ctx.lam
        towards_cosines = None
        if inverse is not None:
            towards_cosines = places.to_pairs(gradient * mixed, ctx.shape[1])
            towards_cosines = _slope_of_inverse_norms(inverse, lam).mul_(towards_cosines)
            gradient = gradient * places.of_pairs(inverse)
        if isinstance(lam, Tensor):
            weighted = gradient * places.of_pairs(lam)
            first, second = weighted.sum(2), (gradient - weighted).sum(1)
        else:
            first, second = gradient.sum(2).mul_(lam), gradient.sum(1).mul_(1 - lam)
        if places.second is not None:
            second = second.new_zeros(ctx.shape).scatter_add_(1, places.second, second)
        if not places.own:
            second = second + first if places.first is None else second.scatter_add_(1, places.first, first)
        return second, towards_cosines, None, None, None


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
        self.present = (first.present.any(1) & second.present.any(1) & (y > 0))[:, None]

    def log_sum_exp(self, x: _Sum, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        first, second = self.first.log_sum_exp(x.first, slope), self.second.log_sum_exp(x.second, slope)
        log_y = math.log(self.y) if self.y > 0 else -math.inf
        logarithm = first + second + (log_y - slope * centre)
        return softplus(logarithm) if plus_one else logarithm


def _factorised(loss: Loss, batch: Batch, lam: float) -> Tensor:
    """pos-neg without re-normalisation, for a loss that meets its similarities in log_sum_exp only."""
    similarities, dtype = batch.similarities, batch.similarities.dtype
    sides = loss.sides(batch)
    if loss.anchors == "proxies":
        used = _not_empty("pos-neg", *sides, None).nonzero().flatten()
        similarities, *sides = (x.index_select(0, used) for x in (similarities, *sides))
    if len(similarities) == 0:
        return similarities.new_zeros(())
    first, second = (Weights(side, 1.0, side.shape, dtype) for side in sides)
    x = _Sum(lam * similarities, (1 - lam) * similarities)
    return loss.formula(x, _Factors(first, second, lam), _Factors(first, second, 1 - lam)).mean()


# Mixed examples as anchors among clean candidates


class _MixRows(Function):
    """λ·base[i] + (1−λ)·base[j] (m, c) for the pairs (i, j), times their inverse norms.

    Without re-normalisation `cosines` and `inverse` (n, n) are None. `without_pair`: −∞ in the columns i and j.
    """

    @staticmethod
    def forward(ctx, base, cosines, inverse, first, second, lam: float | Tensor, without_pair: bool) -> Tensor:
        ctx.n, ctx.lam = len(base), lam
        ctx.y = y = lam[first, second][:, None] if isinstance(lam, Tensor) else lam
        mixed = base.index_select(0, first).mul_(y).add_(base.index_select(0, second).mul_(1 - y))
        ctx.save_for_backward(None if inverse is None else mixed, inverse, first, second)
        if inverse is None:
            scaled = mixed.clamp(-1.0, 1.0)
        else:
            scaled = mixed.mul(inverse.flatten()[first * ctx.n + second][:, None]).clamp_(-1.0, 1.0)
        if without_pair:
            scaled.scatter_(1, torch.stack([first, second], 1), -torch.inf)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        mixed, inverse, first, second = ctx.saved_tensors
        n, y, towards_cosines = ctx.n, ctx.y, None
        if inverse is not None:
            pair = first * n + second
            towards_pairs = torch.linalg.vecdot(gradient, mixed)
            towards_cosines = gradient.new_zeros(n * n).index_add_(0, pair, towards_pairs).view(n, n)
            towards_cosines = _slope_of_inverse_norms(inverse, ctx.lam).mul_(towards_cosines)
            gradient = gradient * inverse.flatten()[pair][:, None]
        towards_base = gradient.new_zeros(n, gradient.shape[1])
        if isinstance(y, Tensor):
            towards_base.index_add_(0, first, gradient * y).index_add_(0, second, gradient * (1 - y))
        else:
            towards_base.index_add_(0, first, gradient, alpha=y).index_add_(0, second, gradient, alpha=1 - y)
        return towards_base, towards_cosines, None, None, None, None, None


def _mixed_anchors(loss: Loss, batch: Batch, lam: float | Tensor, chosen: Tensor | None, renormalize: bool) -> Tensor:
    labels, similarities = batch.labels, batch.similarities
    chosen = labels[:, None] != labels if chosen is None else chosen
    first, second = chosen.nonzero(as_tuple=True)
    if len(first) == 0:
        return similarities.new_zeros(())
    cosines = inverse = None
    if renormalize:
        cosines = cosine(batch.embeddings, batch.embeddings) if loss.learns_classes else similarities
        inverse = _inverse_norms(cosines.detach(), lam)
    own = _own_class(loss, batch)

    def losses(rows: slice | None, similarities: Tensor, cosines: Tensor | None) -> Tensor:
        i, j = (first, second) if rows is None else (first[rows], second[rows])
        mixed = _MixRows.apply(similarities, cosines, inverse, i, j, lam, not loss.learns_classes)
        y = lam[i, j][:, None] if isinstance(lam, Tensor) else lam
        return loss.formula(mixed, *_two_classes(loss, batch, own, i, j, y))

    step = max(1, CHUNK // similarities.shape[1])
    chunks = [slice(k, k + step) for k in range(0, len(first), step)]
    return _total(losses, chunks, similarities, cosines) / len(first)


def _own_class(loss: Loss, batch: Batch) -> tuple[Tensor, Tensor]:
    """The columns of the candidates of each example's class (n, t), and 1 for each that is no padding."""
    index, valid = (batch.labels[:, None], None) if loss.learns_classes else _lists(loss.sides(batch)[0])
    dtype = batch.similarities.dtype
    return index, torch.ones_like(index, dtype=dtype) if valid is None else valid.to(dtype)


def _two_classes(loss: Loss, batch: Batch, own, first: Tensor, second: Tensor, lam) -> tuple[Weights, Weights]:
    """Label weights of mixed anchors (first, second), (m,) each: λ on the first's class, 1 − λ on the second's."""
    index, valid = own
    value = torch.cat([valid[first] * lam, valid[second] * (1 - lam)], 1)
    shape = torch.Size((len(first), len(loss.proxies) if loss.learns_classes else len(batch.labels)))
    positive = Listed(torch.cat([index[first], index[second]], 1), value, shape, batch.similarities.dtype)
    return positive, positive.rest()


# Sums over more than fits into memory at once


def _chunks(similarities: Tensor, places: _Places, negative: Tensor | None) -> list[slice | Tensor]:
    """Rows of anchors to be computed together; with `negative`, those of a chunk have the same negatives."""
    first, second = (similarities.shape[1] if x is None else x.shape[1] for x in (places.first, places.second))
    size = second if places.own else first * second
    step = max(1, CHUNK // max(1, size))
    if len(similarities) <= step or negative is None:
        return [slice(k, k + step) for k in range(0, len(similarities), step)]
    group = negative.unique(dim=0, return_inverse=True)[1]
    step = max(step, 8)  # the mask of a group is shared
    return [part for g in range(int(group.max()) + 1) for part in (group == g).nonzero().flatten().split(step)]


def _total(function: Callable[..., Tensor], chunks: list, *tensors: Tensor | None) -> Tensor:
    """The sum of function(rows, *tensors) over all chunks of rows; with one chunk rows are None, for all."""
    if len(chunks) == 1:
        return function(None, *tensors).sum()
    return _InChunks.apply(function, chunks, *tensors)


class _InChunks(Function):
    """Holds one chunk at a time: each is differentiated as soon as it is computed.

    So nothing is computed twice, and nothing is kept but the gradients of the (small) tensors.
    """

    @staticmethod
    def forward(ctx, function: Callable[..., Tensor], chunks: list, *tensors: Tensor | None) -> Tensor:
        leaves = {}  # one leaf for a tensor that is given twice
        for x, needed in zip(tensors, ctx.needs_input_grad[2:], strict=True):
            if x is not None and id(x) not in leaves:
                leaves[id(x)] = x.detach().requires_grad_(needed)
        given = [None if x is None else leaves[id(x)] for x in tensors]
        result = 0.0
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            for rows in chunks:
                part = function(rows, *given).sum()
                if part.requires_grad:
                    part.backward()
                result = result + part.detach()
        gradients = [leaves.pop(id(x)).grad if id(x) in leaves else None for x in tensors]
        ctx.save_for_backward(*gradients)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return None, None, *(None if x is None else x * gradient for x in ctx.saved_tensors)
