"""The label weights of each anchor's candidates, and the sums that losses compute with them.

A clean label says positive (1) or negative (0); a mixed label lies in between. A loss receives the weights y of the
positives and 1 − y of the negatives. Every reduction here runs over the candidates of each anchor and returns (a,).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from baselines.numerics import log_sum_exp


def log_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logarithm of a mask (bool): 0 where it is true, −∞ elsewhere. A sum of two is their intersection."""
    empty = torch.full(mask.shape, -math.inf, dtype=dtype, device=mask.device)
    return empty.masked_fill_(mask, 0.0)


class Weights:
    """The weight of each candidate for each anchor: `value` inside the anchor's labelled set, 0 outside.

    `log_mask` is 0 inside the set and −∞ outside. `value` is a number or a tensor in [0, 1]. Both broadcast to
    `shape` = (a, …), the shape of the similarities.
    """

    def __init__(self, log_mask: Tensor, value: float | Tensor, shape: torch.Size):
        self.log_mask, self.value, self.shape = log_mask, value, shape

    @classmethod
    def of_label(cls, log_mask: Tensor, y: float | Tensor, shape: torch.Size) -> tuple[Weights, Weights]:
        """Return the weights y and 1 − y of the members of a set."""
        return cls(log_mask, y, shape), cls(log_mask, 1 - y, shape)

    @cached_property
    def present(self) -> Tensor:
        """Where the weight is above zero (bool, broadcastable to `shape`)."""
        if isinstance(self.value, Tensor):
            return (self.log_mask == 0) & (self.value > 0)
        return self.log_mask == 0 if self.value > 0 else self.log_mask > 0

    @cached_property
    def values(self) -> Tensor:
        """The weights as numbers (broadcastable to `shape`)."""
        return self.log_mask.clone().eq_(0).mul(self.value)  # several times faster than the exponential of −∞

    def sum(self, terms: Tensor) -> Tensor:
        """Return Σ y·terms."""
        if not isinstance(self.value, Tensor) and self.value == 0:
            return terms.new_zeros(len(terms))
        return weighted_sum(self.values, terms)

    def any(self) -> Tensor:
        """Return whether any weight is above zero (bool)."""
        if isinstance(self.value, Tensor):
            present = self.present.flatten(1).any(1)
        elif self.value == 0:
            present = torch.zeros(1, dtype=torch.bool, device=self.log_mask.device)
        else:
            present = self.log_mask.flatten(1).amax(1) == 0
        return present.expand(self.shape[0])

    def count(self) -> Tensor:
        """Return how many weights are above zero."""
        repeated = math.prod(self.shape[1:]) // max(1, math.prod(self.present.shape[1:]))
        return (self.present.flatten(1).sum(1) * repeated).expand(self.shape[0])

    def log_sum_exp(self, x: Tensor, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        """Return log Σ y·e^{slope·(x − centre)}, or log(1 + Σ …) with `plus_one`; −∞ (or 0) for an empty sum."""
        shift = -slope * centre
        if isinstance(self.value, Tensor):
            return log_sum_exp(x, self.log_mask + self.value.log(), slope, shift, plus_one)
        if self.value == 0:
            return x.new_full((len(x),), 0.0 if plus_one else -math.inf)
        return log_sum_exp(x, self.log_mask, slope, shift + math.log(self.value), plus_one)


class Listed(Weights):
    """The weights `value` (a, t) of a few candidates, in the columns `index` (a, t); all others have weight 0.

    The columns of a row are distinct, except where the value is 0.
    """

    value: Tensor

    def __init__(self, index: Tensor, value: Tensor, shape: torch.Size):
        self.index, self.value, self.shape = index, value, shape

    @cached_property
    def present(self) -> Tensor:
        return self.values > 0

    @cached_property
    def values(self) -> Tensor:
        return self.value.new_zeros(self.shape).scatter_add_(1, self.index, self.value)

    def sum(self, terms: Tensor) -> Tensor:
        return (self.value * terms.gather(1, self.index)).sum(1)

    def count(self) -> Tensor:
        return (self.value > 0).sum(1)

    def log_sum_exp(self, x: Tensor, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        return log_sum_exp(x.gather(1, self.index), self.value.log(), slope, -slope * centre, plus_one)

    def rest(self) -> Weights:
        """Return the weights 1 − y of all candidates."""
        return _Rest(self)


class _Rest(Weights):
    def __init__(self, listed: Listed):
        self.listed, self.shape = listed, listed.shape

    @cached_property
    def present(self) -> Tensor:
        return self.values > 0

    @cached_property
    def values(self) -> Tensor:
        return 1 - self.listed.values

    def log_sum_exp(self, x: Tensor, slope: float = 1.0, centre: float = 0.0, plus_one: bool = False) -> Tensor:
        index, value = self.listed.index, self.listed.value
        logs = value.new_zeros(self.shape).scatter_add_(1, index, (-value).log1p())
        return log_sum_exp(x, logs, slope, -slope * centre, plus_one)


def weighted_sum(values: Tensor, terms: Tensor) -> Tensor:
    """Return Σ values·terms over all dimensions but the first; the values broadcast to the terms."""
    shared = terms.sum_to_size(len(terms), *values.shape[1:])  # terms with the same value are added up first
    return (values * shared).flatten(1).sum(1)


def total(positive: Weights, negative: Weights, x: Tensor, slope: float) -> Tensor:
    """Return log Σ e^{slope·x} over all candidates of each anchor, whose weights y and 1 − y add up to 1."""
    if isinstance(negative, _Rest):
        return log_sum_exp(x, None, slope)
    return Weights(torch.maximum(positive.log_mask, negative.log_mask), 1.0, positive.shape).log_sum_exp(x, slope)
