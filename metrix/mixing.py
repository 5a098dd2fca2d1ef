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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from baselines.form import Batch, Loss
from baselines.numerics import cosine, full_precision, softplus
from baselines.weights import Listed, Weights, belonging
from metrix.pairs import uses

CHUNK = 2**18  # similarities computed at once, about what fits a processor's cache; larger sets are cut into chunks
EMBEDDED = 2**23  # the same where each chunk costs a matrix product with all mixed embeddings


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
    belongs = belonging(members, dtype)

    def losses(rows: slice | None, anchors: Tensor, mixed: Tensor) -> Tensor:
        return _formula(loss, cosine(anchors, mixed), belongs if rows is None else belongs[rows], pairs, lam)

    step = max(1, EMBEDDED // len(mixed))
    chunks = [slice(k, k + step) for k in range(0, len(anchors), step)]
    return _mean(losses, len(anchors), chunks, (anchors, mixed), (True, False))


def _formula(loss: Loss, similarities: Tensor, belongs: Tensor, pairs: str, lam: float | Tensor) -> Tensor:
    y = {"pos-pos": 1.0, "neg-neg": 0.0}.get(pairs, lam)
    return loss.formula(similarities, *Weights.of_label(belongs, y, similarities.shape))


# Mixed examples among the candidates of clean anchors


def _mixed_candidates(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None, renormalize: bool
) -> Tensor:
    similarities = batch.similarities
    (positive, negative), belongs = loss.sides(batch), loss.belonging(batch)[1]
    if pairs in ("pos-pos", "neg-neg"):
        distinct = ~torch.eye(len(batch.labels), dtype=torch.bool, device=similarities.device)
        chosen = distinct if chosen is None else chosen & distinct
    if loss.anchors == "proxies":
        used = _not_empty(pairs, positive, negative, chosen)
        if not used.all():
            used = used.nonzero().flatten()
            similarities, positive, negative, belongs = (
                x.index_select(0, used) for x in (similarities, positive, negative, belongs)
            )
            if pairs == "anc-neg":
                lam, chosen = (x[used] if isinstance(x, Tensor) else x for x in (lam, chosen))
    index = valid = None
    if pairs in ("pos-neg", "pos-pos"):
        index, valid = _lists(positive)
    if len(similarities) == 0 or (index is not None and index.shape[1] == 0):
        return similarities.new_zeros(())
    places = _Places(index, index if pairs == "pos-pos" else None, own=pairs == "anc-neg")
    valid = None if valid is None else belonging(valid, similarities.dtype)
    conditions = {"pos-neg": (valid, belongs), "pos-pos": (valid, valid), "neg-neg": (belongs, belongs)}
    mixed_sets = _MixedSets(
        places,
        *conditions.get(pairs, (None, belongs)),
        chosen=None if chosen is None else belonging(chosen, similarities.dtype),
        lam=lam,
    )

    def losses(rows: slice | Tensor | None, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        sets = mixed_sets if rows is None else mixed_sets.rows(rows)
        mixed = _Mix.apply(similarities, inverse, sets.places, sets.lam)
        return _formula(loss, mixed, sets.belongs(), pairs, sets.label())

    inverse = None
    if renormalize:
        of_similarities = loss.anchors == "examples" or pairs == "anc-neg"
        inverse = _InverseNorms.apply(*((similarities, None) if of_similarities else (None, batch.embeddings)), lam)
    chunks = _chunks(similarities, places, negative if pairs == "neg-neg" else None)
    by_rows = (True, places.own)
    return _mean(losses, len(similarities), chunks, (similarities, inverse), by_rows)


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


class _InverseNorms(Function):
    """1/‖λz_i + (1−λ)z_j‖, at most 1e6, from the cosines of i and j or the unit vectors z (n, d)."""

    @staticmethod
    def forward(ctx, cosines: Tensor | None, vectors: Tensor | None, lam: float | Tensor) -> Tensor:
        # λ² + (1−λ)² + 2λ(1−λ)s as a sum of two non-negative terms, which cannot cancel
        square = cosines + 1 if vectors is None else (vectors @ vectors.T).add_(1).clamp_(min=0.0)
        square.mul_(2 * lam * (1 - lam)).add_((2 * lam - 1) ** 2)
        near_half = isinstance(lam, Tensor) or abs(2 * lam - 1) < 1e-6  # elsewhere no norm is so small
        cut_off = square < 1e-12 if near_half else None
        inverse = square.clamp_(min=1e-12).rsqrt_()
        ctx.lam = lam
        ctx.save_for_backward(inverse, cut_off, vectors)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        inverse, cut_off, vectors = ctx.saved_tensors
        towards = inverse.pow(3).mul_(gradient).mul_(-ctx.lam * (1 - ctx.lam))
        towards = towards if cut_off is None else towards.masked_fill_(cut_off, 0.0)
        if vectors is None:
            return towards, None, None
        with full_precision(vectors.device):
            return None, (towards + towards.T) @ vectors, None


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


@dataclass(frozen=True)
class _MixedSets:
    """The mixed sets of anchors: where their constituents are, and which combinations belong.

    The logarithms of belonging of the first (a, f), the second (a, s) and the pairs, None for all; λ, a number or one
    for each pair. A first dimension of 1 is shared by all anchors.
    """

    places: _Places
    first: Tensor | None
    second: Tensor | None
    chosen: Tensor | None
    lam: float | Tensor

    def rows(self, rows: slice | Tensor) -> _MixedSets:
        """The sets of some anchors; an index of rows (rather than a slice) names anchors with the same members."""

        def cut(x):
            return x[rows] if isinstance(x, Tensor) else x

        first, second = cut(self.first), cut(self.second)
        if isinstance(rows, Tensor):
            first, second = first[:1], second[:1]
        chosen, lam = (self.chosen, self.lam) if not self.places.own else (cut(self.chosen), cut(self.lam))
        return _MixedSets(self.places.rows(rows), first, second, chosen, lam)

    def belongs(self) -> Tensor:
        """The logarithm of belonging, broadcastable to (a, f, s)."""
        conditions = (
            None if self.first is None else self.first[:, :, None],
            None if self.second is None else self.second[:, None, :],
            None if self.chosen is None else self.places.of_pairs(self.chosen),
        )
        return reduce(torch.add, (c for c in conditions if c is not None))

    def label(self) -> float | Tensor:
        """λ, broadcastable to (a, f, s)."""
        return self.places.of_pairs(self.lam) if isinstance(self.lam, Tensor) else self.lam


class _Mix(Function):
    """The similarities (a, f, s) of anchors to their mixed examples, from those to the clean ones (a, n).

    `inverse` are the inverse norms of the pairs, None for no re-normalisation.
    """

    @staticmethod
    def forward(ctx, similarities: Tensor, inverse: Tensor | None, places: _Places, lam: float | Tensor) -> Tensor:
        second = similarities if places.second is None else similarities.gather(1, places.second)
        if places.own:
            first = similarities.new_ones(len(similarities), 1)
        else:
            first = similarities if places.first is None else similarities.gather(1, places.first)
        first, second = first[:, :, None], second[:, None, :]
        lam = places.of_pairs(lam) if isinstance(lam, Tensor) else lam
        if isinstance(lam, Tensor):
            mixed = first * lam + second * (1 - lam)
        else:
            mixed = torch.add(first * lam, second, alpha=1 - lam)
        inverse = None if inverse is None else places.of_pairs(inverse)
        ctx.lam, ctx.places, ctx.shape = lam, places, similarities.shape
        ctx.save_for_backward(None if inverse is None else mixed, inverse)
        return mixed if inverse is None else (mixed * inverse).clamp_(-1.0, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (mixed, inverse), places, lam = ctx.saved_tensors, ctx.places, ctx.lam
        towards_inverse = None
        if inverse is not None:
            towards_inverse = places.to_pairs(gradient * mixed, ctx.shape[1])
            gradient = gradient * inverse
        if isinstance(lam, Tensor):
            weighted = gradient * lam
            first, second = weighted.sum(2), (gradient - weighted).sum(1)
        else:
            first, second = gradient.sum(2).mul_(lam), gradient.sum(1).mul_(1 - lam)
        if places.second is not None:
            second = second.new_zeros(ctx.shape).scatter_add_(1, places.second, second)
        if not places.own:
            second = second + first if places.first is None else second.scatter_add_(1, places.first, first)
        return second, towards_inverse, None, None


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


# Mixed examples as anchors among clean candidates


class _MixRows(Function):
    """λ·base[i] + (1−λ)·base[j] (m, c) for the pairs (i, j), times `inverse` (m,), the inverse norms, if given.

    λ is a number or (m, 1). `without_pair`: −∞ in the columns i and j.
    """

    @staticmethod
    def forward(ctx, base: Tensor, inverse: Tensor | None, first, second, lam, without_pair: bool) -> Tensor:
        mixed = base.index_select(0, first).mul_(lam).add_(base.index_select(0, second).mul_(1 - lam))
        ctx.lam, ctx.rows = lam, len(base)
        ctx.save_for_backward(None if inverse is None else mixed, inverse, first, second)
        scaled = mixed.clone() if inverse is None else mixed * inverse[:, None]
        scaled.clamp_(-1.0, 1.0)
        return scaled.scatter_(1, torch.stack([first, second], 1), -torch.inf) if without_pair else scaled

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        mixed, inverse, first, second = ctx.saved_tensors
        lam, towards_inverse = ctx.lam, None
        if inverse is not None:
            towards_inverse = torch.linalg.vecdot(gradient, mixed)
            gradient = gradient * inverse[:, None]
        towards_base = gradient.new_zeros(ctx.rows, gradient.shape[1])
        if isinstance(lam, Tensor):
            towards_base.index_add_(0, first, gradient * lam).index_add_(0, second, gradient * (1 - lam))
        else:
            towards_base.index_add_(0, first, gradient, alpha=lam).index_add_(0, second, gradient, alpha=1 - lam)
        return towards_base, towards_inverse, None, None, None, None


def _mixed_anchors(loss: Loss, batch: Batch, lam: float | Tensor, chosen: Tensor | None, renormalize: bool) -> Tensor:
    labels, similarities = batch.labels, batch.similarities
    chosen = labels[:, None] != labels if chosen is None else chosen
    first, second = chosen.nonzero(as_tuple=True)
    if len(first) == 0:
        return similarities.new_zeros(())
    inverse = None
    if renormalize:
        pairwise = (None, batch.embeddings) if loss.learns_classes else (similarities, None)
        inverse = _InverseNorms.apply(*pairwise, lam).flatten().index_select(0, first * len(labels) + second)
    own = _own_class(loss, batch)

    def losses(rows: slice | None, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        i, j = (first, second) if rows is None else (first[rows], second[rows])
        y = lam[i, j][:, None] if isinstance(lam, Tensor) else lam
        mixed = _MixRows.apply(similarities, inverse, i, j, y, not loss.learns_classes)
        return loss.formula(mixed, *_two_classes(loss, batch, own, i, j, y))

    step = max(1, CHUNK // similarities.shape[1])
    chunks = [slice(k, k + step) for k in range(0, len(first), step)]
    return _mean(losses, len(first), chunks, (similarities, inverse), (False, True))


def _own_class(loss: Loss, batch: Batch) -> tuple[Tensor, Tensor]:
    """The columns of the candidates of each example's class (n, t), and 1 for each that is no padding."""
    index, valid = (batch.labels[:, None], None) if loss.learns_classes else _lists(loss.sides(batch)[0])
    dtype = batch.similarities.dtype
    return index, torch.ones_like(index, dtype=dtype) if valid is None else valid.to(dtype)


def _two_classes(loss: Loss, batch: Batch, own, first: Tensor, second: Tensor, lam) -> tuple[Weights, Weights]:
    """Label weights of mixed anchors (first, second), (m,) each: λ on the first's class, 1 − λ on the second's."""
    index, valid = own
    value = torch.cat([valid.index_select(0, first) * lam, valid.index_select(0, second) * (1 - lam)], 1)
    columns = torch.cat([index.index_select(0, first), index.index_select(0, second)], 1)
    classes = len(loss.proxies) if loss.learns_classes else len(batch.labels)
    positive = Listed(columns, value, torch.Size((len(first), classes)))
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


def _mean(function: Callable, count: int, chunks: list, tensors: tuple, by_rows: tuple[bool, ...]) -> Tensor:
    """The mean of function(rows, *tensors) over all `count` rows, the tensors marked in `by_rows` cut to the rows.

    One chunk is computed as it is, with rows None.
    """
    if len(chunks) == 1:
        return function(None, *tensors).mean()
    return _InChunks.apply(function, chunks, by_rows, *tensors) / count


class _InChunks(Function):
    """The sum of function(rows, *tensors) over chunks of rows, differentiated as soon as it is computed.

    So one chunk is held at a time, nothing is computed twice, and only the gradients of the (small) tensors are kept.
    """

    @staticmethod
    def forward(ctx, function: Callable, chunks: list, by_rows: tuple[bool, ...], *tensors: Tensor | None) -> Tensor:
        needed = ctx.needs_input_grad[3:]
        gradients = [torch.zeros_like(x) if wanted else None for x, wanted in zip(tensors, needed, strict=True)]
        result = 0.0
        with torch.set_grad_enabled(any(needed)):
            for rows in chunks:
                leaves = [
                    None if x is None else (x[rows] if cut else x).detach().requires_grad_(wanted)
                    for x, cut, wanted in zip(tensors, by_rows, needed, strict=True)
                ]
                part = function(rows, *leaves).sum()
                if part.requires_grad:
                    part.backward()
                result = result + part.detach()
                for total, leaf, cut in zip(gradients, leaves, by_rows, strict=True):
                    if total is not None and leaf.grad is not None:
                        if cut:
                            total[rows] = leaf.grad
                        else:
                            total += leaf.grad
        ctx.save_for_backward(*gradients)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return None, None, None, *(None if x is None else x * gradient for x in ctx.saved_tensors)
