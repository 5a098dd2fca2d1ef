"""The label weights of anchors' candidates, and the sums that losses take with them.

Clean labels say positive (1) or negative (0); mixed ones lie in between. A loss gets the weights y of the positives
and 1 − y of the negatives, and every reduction here runs over the candidates of each anchor and returns (a,).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from baselines.numerics import log_sum_exp


class Weights:
    """The weight of each candidate for each anchor: `value` for the members of its labelled set, 0 for the others.

    `members` (bool) and `value`, a number or a tensor in [0, 1], broadcast to `shape` = (a, …), the shape of the
    similarities they go with.
    """

    def __init__(self, members: Tensor, value: float | Tensor, shape: torch.Size, dtype: torch.dtype):
        self.members, self.value, self.shape, self.dtype = members, value, shape, dtype

    @classmethod
    def of_label(
        cls, members: Tensor, y: float | Tensor, shape: torch.Size, dtype: torch.dtype
    ) -> tuple[Weights, Weights]:
        """The weights y and 1 − y of the members of a set."""
        positive, negative = cls(members, y, shape, dtype), cls(members, 1 - y, shape, dtype)
        negative.membership = positive.membership
        return positive, negative

    @cached_property
    def membership(self) -> Tensor:
        """0 for members and −∞ for the others, the logarithm of belonging (broadcastable to `shape`)."""
        nothing = torch.full(self.members.shape, -math.inf, dtype=self.dtype, device=self.members.device)
        return nothing.masked_fill_(self.members, 0.0)

    @cached_property
    def present(self) -> Tensor:
        """Where the weight is above zero (bool, broadcastable to `shape`)."""
        if isinstance(self.value, Tensor):
            return self.members & (self.value > 0)
        return self.members if self.value > 0 else torch.zeros_like(self.members)

    @cached_property
    def values(self) -> Tensor:
        """The weights as numbers (broadcastable to `shape`)."""
        return self.members.to(self.dtype).mul(self.value)

    def sum(self, terms: Tensor) -> Tensor:
        """Σ y·terms."""
        if not isinstance(self.value, Tensor) and self.value == 0:
            return terms.new_zeros(len(terms))
        shared = terms.sum_to_size(len(terms), *self.values.shape[1:])  # candidates with the same weight
        return (self.values * shared).flatten(1).sum(1)

    def count(self) -> Tensor:
        """How many weights are above zero."""
        repeated = math.prod(self.shape[1:]) // max(1, math.prod(self.present.shape[1:]))
        return self.present.flatten(1).sum(1) * repeated

    def log_sum_exp(self, x: Tensor, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        """log Σ y·e^{slope·(x − centre)}, or log(1 + Σ …) with `plus_one`; −∞ (or 0) for an empty sum."""
        shift = -slope * centre
        if isinstance(self.value, Tensor):
            return log_sum_exp(x, self.values.log(), slope, shift, plus_one)
        if self.value == 0:
            return x.new_full((len(x),), 0.0 if plus_one else -math.inf)
        return log_sum_exp(x, self.membership, slope, shift + math.log(self.value), plus_one)


class Listed(Weights):
    """Weights of a few candidates: those in the columns `index` (a, t), each with `value`, a number or (a, t).

    Columns of one row differ, except where the value is 0.
    """

    def __init__(self, index: Tensor, value: float | Tensor, shape: torch.Size, dtype: torch.dtype):
        self.index, self.shape, self.dtype = index, shape, dtype
        given = isinstance(value, Tensor)
        self.value = value if given else torch.full(index.shape, value, dtype=dtype, device=index.device)

    @cached_property
    def present(self) -> Tensor:
        return self.values > 0

    @cached_property
    def values(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.index.device).scatter_add_(
            1, self.index, self.value
        )

    def sum(self, terms: Tensor) -> Tensor:
        return (self.value * terms.gather(1, self.index)).sum(1)

    def count(self) -> Tensor:
        return (self.value > 0).sum(1)

    def log_sum_exp(self, x: Tensor, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        return log_sum_exp(x.gather(1, self.index), self.value.log(), slope, -slope * centre, plus_one)

    def rest(self) -> Weights:
        """The weights 1 − y of all candidates."""
        return _Rest(self)


class _Rest(Weights):
    def __init__(self, listed: Listed):
        self.listed, self.shape, self.dtype = listed, listed.shape, listed.dtype

    @cached_property
    def present(self) -> Tensor:
        return self.values > 0

    @cached_property
    def values(self) -> Tensor:
        return 1 - self.listed.values

    def log_sum_exp(self, x: Tensor, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        index, value = self.listed.index, self.listed.value
        logs = torch.zeros(self.shape, dtype=self.dtype, device=index.device)
        logs.scatter_add_(1, index, (-value).log1p())
        return log_sum_exp(x, logs, slope, -slope * centre, plus_one)


def total(positive: Weights, negative: Weights, x: Tensor, slope: float) -> Tensor:
    """log Σ e^{slope·x} over all candidates of each anchor, whose weights y and 1 − y add up to 1."""
    if isinstance(negative, _Rest):
        return log_sum_exp(x, None, slope)
    members = positive.members | negative.members
    return Weights(members, 1.0, positive.shape, positive.dtype).log_sum_exp(x, slope)
