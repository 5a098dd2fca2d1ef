"""Means over more rows than fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from baselines.numerics import first_derivative_only

Rows = slice | Tensor
CHUNK = 2**18  # numbers computed at once, about what fits a processor's cache


def slices(count: int, numbers_of_row: int, at_once: int | None = None) -> list[slice]:
    """Cut `count` rows into consecutive chunks of about `at_once` (None: CHUNK) numbers each."""
    step = max(1, (CHUNK if at_once is None else at_once) // max(1, numbers_of_row))
    return [slice(k, k + step) for k in range(0, count, step)]


def mean_in_chunks(
    function: Callable[..., Tensor],
    chunks: Sequence[Rows],
    tensors: tuple[Tensor | None, ...],
    by_rows: tuple[bool, ...],
) -> Tensor:
    """Return the mean (scalar) of function(rows, *tensors) over the rows of all chunks.

    The tensors marked in `by_rows` are cut to the rows of a chunk. For a single chunk, rows is None and nothing is
    cut.
    """
    if len(chunks) == 1:
        return function(None, *tensors).mean()
    return _Mean.apply(function, chunks, by_rows, *tensors)


class _Mean(Function):
    """Differentiate each chunk as soon as it is computed.

    Only one chunk is in memory at a time, nothing is computed twice, and only the gradients of the (small) tensors
    are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        chunks: Sequence[Rows],
        by_rows: tuple[bool, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        needed: tuple[bool, ...] = ctx.needs_input_grad[3:]
        gradients = [
            torch.zeros_like(x) if wanted and x is not None else None
            for x, wanted in zip(tensors, needed, strict=True)
        ]
        total, count = torch.zeros(()), 0
        with torch.set_grad_enabled(any(needed)):
            for rows in chunks:
                leaves = [
                    None if x is None else (x[rows] if cut else x).detach().requires_grad_(wanted)
                    for x, cut, wanted in zip(tensors, by_rows, needed, strict=True)
                ]
                values = function(rows, *leaves)
                total, count = total + values.detach().sum(), count + len(values)
                if values.requires_grad:
                    values.sum().backward()  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
                _collect(gradients, leaves, by_rows, rows)
        ctx.save_for_backward(*(None if g is None else g.div_(count) for g in gradients))
        return total / count

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(None if x is None else x * gradient for x in ctx.saved_tensors)


def _collect(
    gradients: list[Tensor | None], leaves: list[Tensor | None], by_rows: tuple[bool, ...], rows: Rows
) -> None:
    for gradient, leaf, cut in zip(gradients, leaves, by_rows, strict=True):
        if gradient is not None and leaf is not None and leaf.grad is not None:
            if cut:
                gradient[rows] = leaf.grad
            else:
                gradient += leaf.grad
