"""Mixed examples as losses see them: their similarities to the anchors, and the weights of their labels.

At the embedding level nothing is mixed. With v = λz_i + (1−λ)z_j, re-normalised,

    s(a, v) = (λ s(a,i) + (1−λ) s(a,j)) / √(λ² + (1−λ)² + 2λ(1−λ) s(i,j)),

so the similarities of all mixed examples follow from those of the clean batch. At the other levels the network has
embedded them, and only their labels are left to find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from baselines.form import Batch, Loss
from baselines.numerics import cosine
from baselines.weights import Listed, Weights
from metrix.pairs import uses

CHUNK = 2**20  # similarities computed at once; larger sets are cut into chunks of anchors


def mixed_loss(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None, renormalize: bool
) -> Tensor:
    """ℓ̃ (scalar) of a batch at the embedding level: the mean of the loss over the mixed sets of all anchors.

    `lam` is a number or one for each pair (i, j); `chosen` (bool, one for each pair) restricts the mixed examples,
    None means all. 0 if there is nothing to mix.
    """
    if loss.mixed == "anchors":
        return _mixed_anchors(loss, batch, lam, chosen, renormalize)
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
        shape = torch.Size((len(first), len(loss.proxies) if loss.learns_classes else len(labels)))
        own = _own_candidates(loss, batch)
        return loss.formula(similarities, *_anchor_weights(own, shape, dtype, first, second, lam)).mean()
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


class _InverseNorms(Function):
    """1/‖λz_i + (1−λ)z_j‖ from the cosines of i and j."""

    @staticmethod
    def forward(ctx, cosines: Tensor, lam: float | Tensor) -> Tensor:
        # λ² + (1−λ)² + 2λ(1−λ)s as a sum of two non-negative terms, which cannot cancel
        product = 2 * lam * (1 - lam)
        square = (cosines + 1).mul_(product).add_((2 * lam - 1) ** 2)
        near_half = isinstance(lam, Tensor) or abs(2 * lam - 1) < 1e-6  # elsewhere the square is above its floor
        floored = square < 1e-12 if near_half else None
        inverse = square.clamp_(min=1e-12).rsqrt_()
        ctx.product = product
        ctx.save_for_backward(inverse, floored)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        inverse, floored = ctx.saved_tensors
        slope = inverse.pow(3).mul_(gradient).mul_(-0.5 * ctx.product)
        return slope if floored is None else slope.masked_fill_(floored, 0.0), None


@dataclass(frozen=True)
class _Places:
    """Where anchors with similarities (a, n) find the constituents of their mixed examples (a, f, s).

    The columns `first` (a, f) and `second` (a, s); None is all n in order. `own` says that the first is the anchor
    itself. Each way to read has its adjoint, which adds a gradient up at the same places.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    own: bool = False

    def rows(self, rows: slice) -> _Places:
        """The same for some of the anchors."""
        return _Places(*(None if x is None else x[rows] for x in (self.first, self.second)), self.own)

    def of_pairs(self, matrix: Tensor) -> Tensor:
        """The entries of a matrix (n, n) at the pairs of the mixed examples; (a, n) where the anchor is the first."""
        if self.own:
            return matrix[:, None, :]
        if self.first is None:
            return matrix[None]
        if self.second is None:
            return matrix.index_select(0, self.first.flatten()).view(*self.first.shape, -1)
        return matrix[self.first[:, :, None], self.second[:, None, :]]

    def to_pairs(self, gradient: Tensor, n: int) -> Tensor:
        """The adjoint of `of_pairs`."""
        if self.own:
            return gradient[:, 0]
        if self.first is None:
            return gradient.sum(0)
        if self.second is None:
            return gradient.new_zeros(n, n).index_add_(0, self.first.flatten(), gradient.flatten(0, 1))
        place = self.first[:, :, None] * n + self.second[:, None, :]
        return gradient.new_zeros(n * n).index_add_(0, place.flatten(), gradient.flatten()).view(n, n)


def _columns(similarities: Tensor, index: Tensor | None) -> Tensor:
    return similarities if index is None else similarities.gather(1, index)


class _Mix(Function):
    """λ·s(a,i) + (1−λ)·s(a,j) for the mixed examples (a, f, s) of each anchor, times the inverse norms (n, n)."""

    @staticmethod
    def forward(ctx, similarities: Tensor, inverse: Tensor | None, places: _Places, lam: float | Tensor) -> Tensor:
        second = _columns(similarities, places.second)[:, None, :]
        if places.own:
            first = similarities.new_ones(len(similarities), 1, 1)
        else:
            first = _columns(similarities, places.first)[:, :, None]
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
        (mixed, inverse), places, n = ctx.saved_tensors, ctx.places, ctx.shape[1]
        towards_inverse = None if inverse is None else places.to_pairs(gradient * mixed, n)
        scaled = gradient if inverse is None else gradient * inverse
        if isinstance(ctx.lam, Tensor):
            weighted = scaled * ctx.lam
            first, second = weighted.sum(2), (scaled - weighted).sum(1)
        else:
            first, second = scaled.sum(2).mul_(ctx.lam), scaled.sum(1).mul_(1 - ctx.lam)
        if places.second is not None:
            second = second.new_zeros(ctx.shape).scatter_add_(1, places.second, second)
        if not places.own:
            second = second + first if places.first is None else second.scatter_add_(1, places.first, first)
        return second, towards_inverse, None, None


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


class _InChunks(Function):
    """The sum of function(rows, *tensors) over chunks of rows, holding one chunk at a time.

    Each chunk is differentiated as soon as it is computed, so nothing is computed twice and nothing but the gradients
    of the (small) tensors is kept.
    """

    @staticmethod
    def forward(ctx, function: Callable[..., Tensor], chunks: list[slice], *tensors: Tensor | None) -> Tensor:
        needed = [i for i, x in enumerate(tensors) if ctx.needs_input_grad[i + 2]]
        leaves = [x.detach().requires_grad_(i in needed) if x is not None else None for i, x in enumerate(tensors)]
        result = 0.0
        with torch.set_grad_enabled(bool(needed)):
            for rows in chunks:
                part = function(rows, *leaves)
                if part.requires_grad:
                    part.backward()
                result = result + part.detach()
        ctx.save_for_backward(*(x.grad if x is not None and x.requires_grad else None for x in leaves))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return None, None, *(None if x is None else x * gradient for x in ctx.saved_tensors)


def _in_chunks(function: Callable[..., Tensor], rows: int, size_of_row: int, *tensors: Tensor | None) -> Tensor:
    step = max(1, CHUNK // max(1, size_of_row))
    if rows <= step:
        return function(None, *tensors)
    return _InChunks.apply(function, [slice(i, i + step) for i in range(0, rows, step)], *tensors)


def _not_empty(pairs: str, positive: Tensor, negative: Tensor, chosen: Tensor | None) -> Tensor:
    """Which anchors have a mixed example (a,), from their positives and negatives (a, n) and the chosen pairs."""
    if pairs == "anc-neg":
        return (negative if chosen is None else negative & chosen).any(1)
    first = negative if pairs == "neg-neg" else positive
    second = positive if pairs == "pos-pos" else negative
    if chosen is None:
        return first.any(1) & second.any(1)
    return ((first.float() @ chosen.float() > 0) & second).any(1)


def _mixed_candidates(
    loss: Loss, batch: Batch, pairs: str, lam: float | Tensor, chosen: Tensor | None, renormalize: bool
) -> Tensor:
    similarities = cosines = batch.similarities
    positive, negative = loss.sides(batch)
    if pairs in ("pos-pos", "neg-neg"):
        distinct = ~torch.eye(len(batch.labels), dtype=torch.bool, device=similarities.device)
        chosen = distinct if chosen is None else chosen & distinct
    if loss.anchors == "proxies":
        used = _not_empty(pairs, positive, negative, chosen).nonzero().flatten()
        if len(used) < len(positive):
            similarities, positive, negative = (x.index_select(0, used) for x in (similarities, positive, negative))
        if pairs == "anc-neg":
            cosines = similarities
            lam, chosen = (x[used] if isinstance(x, Tensor) else x for x in (lam, chosen))
        elif renormalize:
            cosines = cosine(batch.embeddings, batch.embeddings)
    index, valid = _lists(positive) if pairs.startswith("pos") else (None, None)
    if len(similarities) == 0 or (index is not None and index.shape[1] == 0):
        return similarities.new_zeros(())
    inverse = _InverseNorms.apply(cosines, lam) if renormalize else None
    places = {
        "pos-neg": _Places(first=index),
        "anc-neg": _Places(own=True),
        "pos-pos": _Places(first=index, second=index),
        "neg-neg": _Places(),
    }[pairs]
    firsts = {"pos-neg": valid, "pos-pos": valid, "neg-neg": negative}.get(pairs)
    seconds = valid if pairs == "pos-pos" else negative

    def total(rows: slice | None, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        def cut(x: Tensor | None) -> Tensor | None:
            return x if x is None or rows is None else x[rows]

        here, s, first, second = places, cut(similarities), cut(firsts), cut(seconds)
        matrices = [inverse, lam if isinstance(lam, Tensor) else None, chosen]
        if rows is not None:
            here = places.rows(rows)
            matrices = [cut(m) for m in matrices] if places.own else matrices
        conditions = [
            None if first is None else first[:, :, None],
            None if second is None else second[:, None, :],
            None if matrices[2] is None else here.of_pairs(matrices[2]),
        ]
        members = reduce(and_, (c for c in conditions if c is not None))
        y = lam if matrices[1] is None else here.of_pairs(matrices[1])
        return _formula(loss, _Mix.apply(s, matrices[0], here, y), members, pairs, y).sum()

    columns, f = similarities.shape[1], 0 if index is None else index.shape[1]
    size_of_row = {"pos-neg": columns * f, "anc-neg": columns, "pos-pos": f * f, "neg-neg": columns**2}[pairs]
    return _in_chunks(total, len(similarities), size_of_row, similarities, inverse) / len(similarities)


class _MixRows(Function):
    """λ·base[first] + (1−λ)·base[second] (m, c), times the inverse norms (m,); −∞ in columns `without` (m, 2)."""

    @staticmethod
    def forward(
        ctx, base: Tensor, inverse: Tensor | None, first: Tensor, second: Tensor, lam, without: Tensor | None
    ):
        mixed = base.index_select(0, first).mul_(lam)
        mixed += base.index_select(0, second).mul_(1 - lam)
        ctx.lam, ctx.rows = lam, len(base)
        ctx.save_for_backward(None if inverse is None else mixed, inverse, first, second)
        scaled = mixed.clone() if inverse is None else mixed * inverse[:, None]
        scaled.clamp_(-1.0, 1.0)
        return scaled if without is None else scaled.scatter_(1, without, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        mixed, inverse, first, second = ctx.saved_tensors
        towards_inverse = None
        if inverse is not None:
            towards_inverse = (gradient * mixed).sum(1)
            gradient = gradient * inverse[:, None]
        towards_base = gradient.new_zeros(ctx.rows, gradient.shape[1])
        if isinstance(ctx.lam, Tensor):
            towards_base.index_add_(0, first, gradient * ctx.lam).index_add_(0, second, gradient * (1 - ctx.lam))
        else:
            towards_base.index_add_(0, first, gradient, alpha=ctx.lam)
            towards_base.index_add_(0, second, gradient, alpha=1 - ctx.lam)
        return towards_base, towards_inverse, None, None, None, None


def _own_candidates(loss: Loss, batch: Batch) -> tuple[Tensor, Tensor]:
    """The columns of the candidates of each example's class (n, t), and which of them are no padding."""
    if loss.learns_classes:
        index, valid = batch.labels[:, None], None
    else:
        index, valid = _lists(loss.sides(batch)[0])
    dtype = batch.similarities.dtype
    return index, torch.ones_like(index, dtype=dtype) if valid is None else valid.to(dtype)


def _anchor_weights(own, shape: torch.Size, dtype, first: Tensor, second: Tensor, lam) -> tuple[Weights, Weights]:
    """Label weights of mixed anchors (first, second), (m,) each: λ on the class of the first, 1 − λ on the other."""
    index, valid = own
    value = torch.cat([valid[first] * lam, valid[second] * (1 - lam)], 1)
    positive = Listed(torch.cat([index[first], index[second]], 1), value, shape, dtype)
    return positive, positive.rest()


def _mixed_anchors(loss: Loss, batch: Batch, lam: float | Tensor, chosen: Tensor | None, renormalize: bool) -> Tensor:
    labels, similarities, n = batch.labels, batch.similarities, len(batch.labels)
    chosen = labels[:, None] != labels if chosen is None else chosen
    first, second = chosen.nonzero(as_tuple=True)
    if len(first) == 0:
        return similarities.new_zeros(())
    inverse = None
    if renormalize:
        cosines = cosine(batch.embeddings, batch.embeddings) if loss.learns_classes else similarities
        inverse = _InverseNorms.apply(cosines, lam)
    own = _own_candidates(loss, batch)
    classes = n if not loss.learns_classes else len(loss.proxies)

    def total(rows: slice | None, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        i, j = (first, second) if rows is None else (first[rows], second[rows])
        y = lam[i, j][:, None] if isinstance(lam, Tensor) else lam
        scale = None if inverse is None else inverse.flatten().index_select(0, i * n + j)
        without = None if loss.learns_classes else torch.stack([i, j], 1)
        mixed = _MixRows.apply(similarities, scale, i, j, y, without)
        shape = torch.Size((len(i), classes))
        return loss.formula(mixed, *_anchor_weights(own, shape, mixed.dtype, i, j, y)).sum()

    return _in_chunks(total, len(first), similarities.shape[1], similarities, inverse) / len(first)
