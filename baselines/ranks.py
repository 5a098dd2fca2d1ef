"""Soft ranks: how many candidates are more similar to an anchor than a positive is, each counted by a logistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from baselines.chunks import Rows, mean_in_chunks, slices


def mean_over_ranks(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    similarities: Tensor,
    ranked: Tensor,
    counted: Tensor,
    temperature: float,
    longest: int,
) -> Tensor:
    """Return the mean (scalar) over anchors of loss(before, near, valid) -> (a,).

    `ranked` and `counted` (bool) have the shape of the similarities and mark columns of each anchor (row), at most
    `longest` ranked ones. The loss receives three tensors (a, longest), with a column for each of the ranked ones:
    how many counted ones are before it, its similarity, and 1. An anchor with fewer has 0 there, beside numbers
    without meaning.
    """
    valid, columns = ranked.to(similarities.dtype).topk(longest, 1)
    near = similarities.gather(1, columns)
    others = similarities.masked_fill(~counted, float("-inf"))

    def losses(_: Rows | None, others: Tensor, near: Tensor, valid: Tensor) -> Tensor:
        return loss(before(others, near, temperature), near, valid)

    chunks = slices(len(others), longest * others.shape[1])
    return mean_in_chunks(losses, chunks, (others, near, valid), (True, True, True))


def before(similarities: Tensor, near: Tensor, temperature: float) -> Tensor:
    """Return Σ σ((s − near)/T) over the similarities s of an anchor (a, n), for each of `near` (a, p).

    A similarity of −∞ does not count, and one that is `near` itself counts as ½.
    """
    return ((similarities[:, None, :] - near[:, :, None]) / temperature).sigmoid().sum(2)


def with_positive(positive: Tensor) -> Tensor:
    """Return the share of the anchors that have a positive, from the mask of the positives (a, n)."""
    return positive.any(1).double().mean()


def too_few(means: Mapping[str, float]) -> tuple[str, ...]:
    """Return a warning if most anchors had no positive, from the mean of `with_positive`."""
    share = means.get("anchors_with_positive", 1.0)
    if share >= 0.5:
        return ()
    return (
        f"only {share:.0%} of the examples had another one of their class in the batch; the others have no rank to "
        "improve, so the loss did not train on them as anchors",
    )
