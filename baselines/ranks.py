"""The soft ranks of an anchor's positives: how many other candidates are more similar, each counted by a logistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from baselines.chunks import Rows, mean_in_chunks, slices


def mean_over_ranks(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    similarities: Tensor,
    ranked: Tensor,
    candidates: Tensor,
    temperature: float,
) -> Tensor:
    """Return the mean (scalar) over anchors of loss(ranks, near, valid) -> (a,).

    `ranked` and `candidates` (bool) have the shape of the similarities. They say which columns of each anchor (row)
    are ranked, and among which; the ranked ones are candidates themselves. The loss receives three tensors (a, p):
    the ranks, the similarities of the ranked ones, and 1. For an anchor with fewer than p there is 0 instead of 1,
    beside a rank without meaning.
    """
    longest = int(ranked.sum(1).max())  # the one wait for the device: the size of all that follows
    valid, columns = ranked.to(similarities.dtype).topk(longest, 1)
    near = similarities.gather(1, columns)
    among = similarities.masked_fill(~candidates, float("-inf"))

    def losses(_: Rows | None, among: Tensor, near: Tensor, valid: Tensor) -> Tensor:
        return loss(soft_ranks(among, near, temperature), near, valid)

    chunks = slices(len(among), longest * among.shape[1])
    return mean_in_chunks(losses, chunks, (among, near, valid), (True, True, True))


def soft_ranks(similarities: Tensor, near: Tensor, temperature: float) -> Tensor:
    """Return 1 + Σ σ((s − near)/T) over the other similarities s of an anchor (a, n), for each of `near` (a, p).

    A similarity of −∞ does not count.
    """
    before = ((similarities[:, None, :] - near[:, :, None]) / temperature).sigmoid()
    return before.sum(2) + 0.5  # `near` is one of the similarities and adds σ(0) to its own rank


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
