"""Mixed examples as anchors among clean candidates, for losses that are a softmax over classes or over the batch.

The label of v = λz_i + (1−λ)z_j over the candidates is λ on the class of i and 1 − λ on that of j.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from baselines.chunks import Rows, mean_in_chunks, slices
from baselines.form import Batch, Loss
from baselines.numerics import cosine, first_derivative_only
from baselines.weights import Listed, Weights
from metrix.norms import inverse_norms
from metrix.pairs import Chosen
from metrix.sets import lists

# torch leaves this function untyped.
vecdot: Callable[..., Tensor] = torch.linalg.vecdot  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def mixed_anchors(loss: Loss, batch: Batch, lam: float | Tensor, chosen: Chosen | None, renormalize: bool) -> Tensor:
    """Return the mean loss (scalar) of all mixed examples of two classes, at the embedding level; 0 if none exist.

    `lam` is one number, or one for each pair (i, j). `chosen` restricts the pairs; None keeps all.
    """
    labels, similarities = batch.host_labels, batch.similarities
    chosen = Chosen.of(labels[:, None] != labels) if chosen is None else chosen
    if len(chosen) == 0:
        return similarities.new_zeros(())
    first, second = chosen.on(similarities.device)
    inverse = None
    if renormalize:
        cosines = cosine(batch.embeddings, batch.embeddings) if loss.learns_classes else similarities
        inverse = inverse_norms(lam, cosines).flatten().index_select(0, first * len(labels) + second)
    own = _own_class(loss, batch)

    def losses(rows: Rows | None, similarities: Tensor, inverse: Tensor | None) -> Tensor:
        i, j = (first, second) if rows is None else (first[rows], second[rows])
        y = lam[i, j][:, None] if isinstance(lam, Tensor) else lam
        mixed = mix_rows(similarities, inverse, i, j, y, not loss.learns_classes)
        return loss.formula(mixed, *_two_classes(loss, batch, own, i, j, y))

    chunks = slices(len(first), similarities.shape[1])
    return mean_in_chunks(losses, chunks, (similarities, inverse), (False, True))


def embedded_anchors(
    loss: Loss, batch: Batch, mixed: Tensor, lam: float | Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Return the same mean loss (scalar) for mixed examples that are embedded, `mixed` (m, d).

    They mix the pairs (first, second), (m,) each. `lam` is one number, or one for each of them (m,).
    """
    similarities = cosine(mixed, batch.embeddings if batch.proxies is None else batch.proxies)
    if not loss.learns_classes:
        similarities = similarities.scatter(1, torch.stack([first, second], 1), -torch.inf)
    lam = lam[:, None] if isinstance(lam, Tensor) else lam
    weights = _two_classes(loss, batch, _own_class(loss, batch), first, second, lam)
    return loss.formula(similarities, *weights).mean()


def mix_rows(
    base: Tensor, inverse: Tensor | None, first: Tensor, second: Tensor, lam: float | Tensor, without_pair: bool
) -> Tensor:
    """Return λ·base[i] + (1−λ)·base[j] (m, c) for the pairs (i, j), times the `inverse` norms (m,), if given.

    λ is one number or (m, 1). `without_pair` sets the columns i and j to −∞.
    """
    return _MixRows.apply(base, inverse, first, second, lam, without_pair)


class _MixRows(Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        inverse: Tensor | None,
        first: Tensor,
        second: Tensor,
        lam: float | Tensor,
        without_pair: bool,
    ) -> Tensor:
        if isinstance(lam, Tensor):
            mixed = base.index_select(0, first).mul_(lam).add_(base.index_select(0, second).mul_(1 - lam))
        else:
            mixed = (base * lam).index_select(0, first).add_((base * (1 - lam)).index_select(0, second))
        ctx.lam, ctx.rows = lam, len(base)
        ctx.save_for_backward(None if inverse is None else mixed, inverse, first, second)
        scaled = mixed.clone() if inverse is None else mixed * inverse[:, None]
        scaled.clamp_(-1.0, 1.0)
        return scaled.scatter_(1, torch.stack([first, second], 1), -torch.inf) if without_pair else scaled

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mixed, inverse, first, second = ctx.saved_tensors
        lam: float | Tensor = ctx.lam
        towards_inverse: Tensor | None = None
        if inverse is not None:
            towards_inverse = vecdot(gradient, mixed)
            gradient = gradient * inverse[:, None]
        towards_base = gradient.new_zeros(ctx.rows, gradient.shape[1])
        if isinstance(lam, Tensor):
            towards_base.index_add_(0, first, gradient * lam).index_add_(0, second, gradient * (1 - lam))
        else:
            towards_base.index_add_(0, first, gradient, alpha=lam).index_add_(0, second, gradient, alpha=1 - lam)
        return towards_base, towards_inverse, None, None, None, None


def _own_class(loss: Loss, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the columns of the candidates of each example's class (n, t), and 1 for each that is not padding."""
    device, dtype = batch.similarities.device, batch.similarities.dtype
    index, valid = (batch.labels[:, None], None) if loss.learns_classes else lists(loss.host_sides(batch)[0], device)
    return index, torch.ones_like(index, dtype=dtype) if valid is None else valid.to(dtype)


def _two_classes(
    loss: Loss, batch: Batch, own: tuple[Tensor, Tensor], first: Tensor, second: Tensor, lam: float | Tensor
) -> tuple[Weights, Weights]:
    """Return the label weights of mixed anchors (first, second), (m,) each: λ and 1 − λ on the class of each."""
    index, valid = own
    value = torch.cat([valid.index_select(0, first) * lam, valid.index_select(0, second) * (1 - lam)], 1)
    columns = torch.cat([index.index_select(0, first), index.index_select(0, second)], 1)
    classes = len(loss.proxies) if loss.learns_classes else len(batch.labels)
    positive = Listed(columns, value, torch.Size((len(first), classes)))
    return positive, positive.rest()
