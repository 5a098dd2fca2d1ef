"""What the paper measures about an embedding space and mixed examples; each measure is a function of embeddings.

Embeddings are normalised inside and computed in at least float32. Pairs are computed in chunks, never all at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.chunks import slices
from baselines.form import Loss, check_shapes, within
from baselines.multi_similarity import MultiSimilarity
from baselines.numerics import cosine, full_precision, unit
from baselines.weights import Weights
from metrix.candidates import sets_of_anchors
from metrix.pairs import groups
from metrix.sets import MixedSets

AT_ONCE = 2**24  # similarities held at once


def alignment(embeddings: Tensor, labels: Tensor) -> float:
    """Return the mean squared distance ‖z − z'‖² of all pairs of one class, in [0, 4]; less is closer.

    embeddings (n, d), labels (n,) integers. Wang and Isola, ICML 2020, with α = 2. NaN if no class has a pair.
    """
    check_shapes(embeddings, labels)
    z = _unit(embeddings).double()
    members = groups(labels)
    sizes = torch.bincount(members).double()
    means = torch.zeros(len(sizes), z.shape[1], dtype=z.dtype, device=z.device).index_add_(0, members, z)
    means /= sizes[:, None]
    scatter = torch.zeros_like(sizes).index_add_(0, members, (z - means[members]).square().sum(1))
    # In a class of k, the k(k−1)/2 squared distances add up to k times the scatter around its mean.
    return ((sizes * scatter).sum() / (sizes * (sizes - 1) / 2).sum()).item()


def uniformity(embeddings: Tensor) -> float:
    """Return the log of the mean of e^{−2‖z−z'‖²} over all pairs i < j, in [−8, 0]; less is more uniform.

    embeddings (n, d). Wang and Isola, ICML 2020, with t = 2.
    """
    z = _unit(embeddings)
    if len(z) < 2:
        return math.nan
    total = 0.0
    for rows in slices(len(z), len(z), AT_ONCE):
        exponents = cosine(z[rows], z[rows.start :]).sub_(1).mul_(4)  # −2‖z−z'‖² = −2(2 − 2s)
        total += exponents.exp_().triu_(diagonal=1).sum(dtype=torch.float64).item()
    return math.log(total / (len(z) * (len(z) - 1) / 2))


def utilization(
    queries: Tensor, train: Tensor, points: int | None = None, generator: torch.Generator | None = None
) -> float:
    """Return the mean squared distance of queries (q, d) to the nearest training embedding (n, d), in [0, 4].

    Venkataramanan et al., ICLR 2022. The value falls as the number of training points grows, so compare values for
    equal numbers only: `points` is the size of a random subset of `train`, drawn from `generator`.
    """
    queries, train = _unit(queries), _unit(train)
    if points is not None:
        within("points", points, 1, len(train))
        device = "cpu" if generator is None else generator.device
        train = train[torch.randperm(len(train), generator=generator, device=device)[:points].to(train.device)]
    nearest = [cosine(queries[rows], train).amax(1) for rows in slices(len(queries), len(train), AT_ONCE)]
    return (2 - 2 * torch.cat(nearest)).mean(dtype=torch.float64).item()


@dataclass(frozen=True)
class Positivity:
    """For each λ, the share of mixed examples that act as positives: pulled to their anchor, or not moved."""

    lambdas: tuple[float, ...]
    measured: tuple[float, ...]
    """The share of pairs of an anchor and a mixed example with ∂ℓ̃(a)/∂s(a,v) ≤ 0."""
    closed_form: tuple[float, ...] | None
    """P(s(a,v) ≤ m + ln(λ/(1−λ))/(β+γ)), exact for a single mixed example; None except for multi-similarity."""

    @property
    def gap(self) -> tuple[float, ...] | None:
        """The difference measured − closed form."""
        if self.closed_form is None:
            return None
        return tuple(a - b for a, b in zip(self.measured, self.closed_form, strict=True))


def positivity(
    embeddings: Tensor,
    labels: Tensor,
    loss: Loss,
    lambdas: Sequence[float] = tuple(k / 20 for k in range(1, 20)),
    renormalize: bool = True,
) -> Positivity:
    """Measure how often mixed examples of a positive and a negative act as positives, for each λ in (0, 1).

    embeddings (n, d) and labels (n,) are one batch, mixed as pos-neg at the embedding level; `loss` has clean
    anchors. Venkataramanan et al., ICLR 2022. Their closed form for multi-similarity holds for |V(a)| = 1. In general
    the threshold on s(a,v) gains ln((1+B)/(1+A))/(β+γ), where A and B are the weighted sums of the loss. Raise a
    ValueError for losses without clean anchors and for batches with nothing to mix.
    """
    if loss.mixed != "candidates":
        raise ValueError(f"{type(loss).__name__} has no mixed examples among the candidates of clean anchors")
    measured: list[float] = []
    closed_form: list[float] = []
    with full_precision(embeddings.device), torch.no_grad():
        batch = loss.batch(embeddings, labels)
        for lam in lambdas:
            within("lambdas", lam, 0.0, 1.0)
            similarities, sets = sets_of_anchors(loss, batch, "pos-neg", float(lam), None)
            if sets is None:
                raise ValueError("nothing to mix: no anchor has both a positive and a negative")
            inverse = sets.inverse_norms(loss, batch, similarities) if renormalize else None
            threshold = math.inf
            if isinstance(loss, MultiSimilarity) and lam < 1:
                odds = math.log(lam / (1 - lam)) if lam > 0 else -math.inf
                threshold = loss.margin + odds / (loss.beta + loss.gamma)
            counts = torch.zeros(3, dtype=torch.float64)
            assert sets.places.first is not None
            for rows in slices(len(similarities), sets.places.first.shape[1] * similarities.shape[1], AT_ONCE // 8):
                counts += _signs(loss, sets.rows(rows), similarities[rows], inverse, threshold)
            measured.append((counts[1] / counts[0]).item())
            closed_form.append((counts[2] / counts[0]).item())
    with_form = isinstance(loss, MultiSimilarity)
    return Positivity(tuple(lambdas), tuple(measured), tuple(closed_form) if with_form else None)


def _signs(loss: Loss, sets: MixedSets, similarities: Tensor, inverse: Tensor | None, threshold: float) -> Tensor:
    """Count the members, those with a derivative ≤ 0, and those with a similarity below the threshold."""
    s = sets.similarities(similarities, inverse).requires_grad_()
    with torch.enable_grad():
        value = loss.formula(s, *Weights.of_label(sets.log_mask(s), sets.lam, s.shape)).sum()
        (slope,) = torch.autograd.grad(value, s)
    members = (sets.log_mask(s) == 0).expand(s.shape)
    return torch.stack([members.sum(), (members & (slope <= 0)).sum(), (members & (s <= threshold)).sum()]).cpu()


def _unit(embeddings: Tensor) -> Tensor:
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise TypeError(f"embeddings must be a floating-point tensor (n, d), not {tuple(embeddings.shape)}")
    with torch.no_grad():
        return unit(embeddings)[0]
