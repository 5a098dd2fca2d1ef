"""Statistics over seeds: intervals, paired differences, corrections, power, ranks. Distributions come from scipy.

The unit of replication is the training seed, so intervals cover the variation over seeds, not over test sets.
`class_bootstrap` covers test classes, alone or with seeds, if the outcomes of single queries are known. Two seeds
give no interval: at n = 2 the t-quantile is 12.7 and the interval is useless. With n < 3 the bounds are nan, and
`method` gives the reason. Standard deviations have ddof = 1 everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from harness.evaluation import NOISE

LEAST_SEEDS = 3
LEAST_BOOTSTRAP_SEEDS = 5
MOST_SEEDS = 100_000

Seed = TypeVar("Seed", bound=Hashable)
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean and its interval [low, high], of half width `half`; the bounds are nan if there is no interval."""

    mean: float
    low: float
    high: float
    half: float
    n: int
    std: float
    method: str
    level: float = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a − b over common seeds, its t-interval and the two-sided p of the paired t-test.

    seeds       the common seeds, in order
    p           nan without a test: fewer than 3 pairs, or differences without any spread around a mean ≠ 0
    left_out    the seeds that only one of the two has
    """

    mean: float
    low: float
    high: float
    half: float
    n: int
    seeds: tuple
    p: float
    method: str
    std: float = math.nan
    level: float = 0.95
    left_out: tuple = ()


@dataclass(frozen=True)
class RankInterval:
    """A row's observed rank (1 = best, equal means share the better one) and the ranks the data do not exclude."""

    rank: int
    low: int
    high: int
    method: str


def mean_interval(values: Sequence[float], level: float = 0.95, over: str = "training seeds") -> Interval:
    """Return the mean of values (n,) with its t-interval at `level` in (0, 1): mean ± t_{n−1} · std / √n.

    Raises ValueError if there is no value or one is not finite.
    """
    values = _finite(values, "values")
    half, method = _half_width(values, level, over)
    mean = math.fsum(values) / len(values)
    return Interval(mean, mean - half, mean + half, half, len(values), _std(values), method, level)


def paired_difference(
    a_by_seed: Mapping[Seed, float], b_by_seed: Mapping[Seed, float], level: float = 0.95
) -> PairedDifference:
    """Return a − b paired by seed, for two arms with the same split, batches and initial weights per seed.

    Both parameters are {seed: score}. The paired t-test assumes that the differences are normal. A sign-flip test is
    not used because with n seeds its p is at least 2/2ⁿ, 0.0625 at 5.

    Raises ValueError for a score that is not finite. No seed in common gives n = 0 and nan.
    """
    seeds = tuple(seed for seed in a_by_seed if seed in b_by_seed)
    left_out = tuple(seed for seed in (*a_by_seed, *b_by_seed) if (seed in a_by_seed) != (seed in b_by_seed))
    if not seeds:
        nan = math.nan
        return PairedDifference(nan, nan, nan, nan, 0, (), nan, "no seed in common", nan, level, left_out)
    a = _finite([a_by_seed[seed] for seed in seeds], "a_by_seed")
    b = _finite([b_by_seed[seed] for seed in seeds], "b_by_seed")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    rounding = 1e-12 * max(map(abs, (*a, *b)))  # a smaller spread or difference is rounding error
    if max(differences) - min(differences) <= rounding:
        differences = [differences[0] if abs(differences[0]) > rounding else 0.0] * len(differences)
    half, method = _half_width(differences, level, "paired seeds")
    mean, std = math.fsum(differences) / len(differences), _std(differences)
    p = float(_paired_p(np.float64(mean), np.float64(std), np.int64(len(seeds))))
    return PairedDifference(mean, mean - half, mean + half, half, len(seeds), seeds, p, method, std, level, left_out)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p-values (m,) adjusted for m comparisons, in the same order, to be compared with the level directly.

    Holm 1979 (A Simple Sequentially Rejective Multiple Test Procedure): the i-th smallest times m − i + 1, never
    decreasing, at most 1. nan (no test) stays nan and does not count towards m.
    """
    p = np.asarray(p_values, float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p_values: {p[(p < 0) | (p > 1)][0]} is outside [0, 1]")
    adjusted = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def bootstrap_interval(
    values_by_stratum: Mapping[Hashable, Sequence[float]],
    level: float = 0.95,
    *,
    statistic: Callable[[list[np.ndarray]], np.ndarray] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the stratified percentile bootstrap over seeds: {stratum: its scores over seeds}.

    Seeds are drawn with replacement inside each stratum (a dataset, say), as in Agarwal et al. 2021 (Deep
    Reinforcement Learning at the Edge of the Statistical Precipice). `statistic` gets one array (..., seeds) per
    stratum and reduces the last axis; by default the mean over strata of their means. `std` is the bootstrap's
    standard error.

    From 5 seeds in each stratum; fewer give no interval, as the percentiles of 3 values are much too narrow.
    Raises ValueError where there is no stratum or no value.
    """
    from scipy import stats

    _checked_level(level)
    if not values_by_stratum:
        raise ValueError("values_by_stratum: no stratum")
    strata = [np.array(_finite(values, f"stratum {name}")) for name, values in values_by_stratum.items()]
    statistic = statistic or (lambda samples: np.mean([sample.mean(axis=-1) for sample in samples], axis=0))
    mean, n = float(statistic(strata)), min(map(len, strata))
    over = f"{n} seeds" + (f" in each of {len(strata)} strata" if len(strata) > 1 else "")
    if n < LEAST_BOOTSTRAP_SEEDS:
        nan = math.nan
        return Interval(mean, nan, nan, nan, n, nan, f"{over}: no bootstrap interval (from 5)", level)
    drawn = stats.bootstrap(
        strata,
        lambda *samples, axis=-1: statistic(list(samples)),
        n_resamples=resamples,
        vectorized=True,
        axis=-1,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, drawn.confidence_interval)
    method = f"{100 * level:g} % percentile bootstrap over {over}"
    return Interval(mean, low, high, (high - low) / 2, n, float(drawn.standard_error), method, level)


def class_bootstrap(
    sums: np.ndarray,
    counts: np.ndarray,
    *,
    over_seeds: bool,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap of a mean over test queries, drawn by class: the variation over test sets.

    Queries of a class are correlated, so whole classes are drawn with replacement (Cameron et al. 2008,
    Bootstrap-Based Improvements for Inference with Clustered Errors). With `over_seeds`, training seeds are drawn
    independently as well, from 5 seeds (fewer give no interval). Equal shapes and `seed` give equal draws, so rows of
    a table are compared on the same resampled test sets.

    sums      (seeds, classes): per training seed, the outcomes of a class's queries added up; or, for a difference,
              those of one arm minus those of the other
    counts    (classes,): the queries of each class

    Raises ValueError where shapes do not fit, there is no query, or fewer than 2 classes.
    """
    _checked_level(level)
    sums, counts = np.atleast_2d(np.asarray(sums, float)), np.asarray(counts, float)
    if sums.shape[1:] != counts.shape or len(counts) < 2 or not counts.sum() > 0:
        raise ValueError(f"class_bootstrap: sums {sums.shape}, counts {counts.shape}; expected (seeds, classes ≥ 2)")
    n, classes = sums.shape
    mean = float((sums.sum(axis=1) / counts.sum()).mean())
    over = f"{classes} test classes" + (f" and {n} training seeds" if over_seeds else "")
    if over_seeds and n < LEAST_BOOTSTRAP_SEEDS:
        nan = math.nan
        return Interval(mean, nan, nan, nan, n, nan, f"{over}: no bootstrap interval (from 5 seeds)", level)
    weights = _draws(classes, resamples, seed)
    scores = (weights @ sums.T) / (weights @ counts)[:, None]
    drawn = (scores * _draws(n, resamples, seed + 1)).sum(axis=1) / n if over_seeds else scores.mean(axis=1)
    low, high = map(float, np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    method = f"{100 * level:g} % percentile bootstrap over {over}"
    return Interval(mean, low, high, (high - low) / 2, n, float(drawn.std(ddof=1)), method, level)


@lru_cache(maxsize=4)
def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each of n items is drawn in n draws with replacement: (resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def variance_shares(scores: np.ndarray, factors: Sequence[str], order: int = 2) -> dict[tuple[str, ...], float]:
    """Return the share of the variance of a complete grid per factor and interaction (η² of a crossed ANOVA).

    scores    one axis per factor, one score per cell, all finite
    factors   the names of the axes
    order     interactions of more factors than this, which include chance, are added up under the key ()

    Shares of single factors come first. Shares add up to 1; all are nan if every score is equal.
    Raises ValueError if a cell is missing or the names do not match the axes.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != len(factors) or not np.isfinite(scores).all() or not scores.size:
        raise ValueError(f"variance_shares: scores {scores.shape} over {len(factors)} factors; all must be there")
    axes = range(scores.ndim)
    total = float(((scores - scores.mean()) ** 2).sum())
    shares = {}
    for size in range(1, min(order, len(factors)) + 1):
        for chosen in itertools.combinations(axes, size):
            effect = scores.mean(axis=tuple(a for a in axes if a not in chosen), keepdims=True)
            for axis in chosen:
                effect = effect - effect.mean(axis=axis, keepdims=True)
            squares = float((effect**2).sum()) * scores.size / effect.size
            shares[tuple(factors[a] for a in chosen)] = squares / total if total else math.nan
    shares[()] = max(0.0, 1.0 - math.fsum(shares.values())) if total else math.nan
    return shares


def power(difference: float, std: float, n: int, *, level: float = 0.95, comparisons: int = 1) -> float:
    """Return the probability that a two-sided paired t-test over n seeds detects a true difference with its sign.

    difference and std are in the same unit; std is that of the paired differences. The error 1 − level is divided by
    `comparisons`, as in Holm's first step for the smallest of m p-values.
    """
    from scipy import stats

    _checked_level(level)
    if std <= 0 or n < 2 or comparisons < 1:
        raise ValueError(f"power: std = {std}, n = {n}, comparisons = {comparisons}; expected > 0, ≥ 2, ≥ 1")
    critical = stats.t.isf((1 - level) / comparisons / 2, n - 1)
    shift = abs(difference) * math.sqrt(n) / std
    return float(stats.nct.sf(critical, n - 1, shift))


def least_detectable(std: float, n: int, *, level: float = 0.95, target: float = 0.8, comparisons: int = 1) -> float:
    """Return the smallest true difference that n seeds detect with probability `target`, in the unit of std.

    nan if n < 3 or std is not positive. Raises ValueError unless `target` is in (0, 1).
    """
    from scipy import optimize

    if not 0 < target < 1:
        raise ValueError(f"target: {target} is outside (0, 1)")
    if n < LEAST_SEEDS or not std > 0:
        return math.nan

    def shortfall(effect: float) -> float:
        return power(effect, 1.0, n, level=level, comparisons=comparisons) - target

    upper = 1.0
    while shortfall(upper) < 0:
        upper *= 2
    if shortfall(0.0) >= 0:
        return 0.0
    root: Any = optimize.brentq(shortfall, 0.0, upper)  # scipy types it as if it might be a tuple
    return std * float(root)


def seeds_needed(
    difference: float, std: float, *, level: float = 0.95, target: float = 0.8, comparisons: int = 1
) -> int:
    """Return the fewest seeds, at least 3, that detect a true difference with probability `target`.

    Raises ValueError if 100,000 seeds are not enough, as for a difference of 0.
    """

    def enough(n: int) -> bool:
        return power(difference, std, n, level=level, comparisons=comparisons) >= target

    if enough(LEAST_SEEDS):
        return LEAST_SEEDS
    below, above = LEAST_SEEDS, 2 * LEAST_SEEDS
    while not enough(above):
        if above > MOST_SEEDS:
            raise ValueError(f"a difference of {difference:g} at std {std:g} needs more than {MOST_SEEDS} seeds")
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if enough(middle) else (middle, above)
    return above


def places(means: Mapping[Name, float]) -> dict[Name, int]:
    """Return the place of every mean among the distinct means: 1 for the highest, 2 for the next lower, and so on.

    Means within `NOISE` of each other are equal and share a place, because the order of summation changes a mean by
    1e-16. Every rank, mark and order of a table uses these places.
    """
    place_by_name: dict[Name, int] = {}
    place, last = 0, math.inf
    for name in sorted(means, key=lambda name: -means[name]):
        place += last - means[name] > NOISE
        place_by_name[name], last = place, means[name]
    return {name: place_by_name[name] for name in means}


def rank_intervals(
    scores_by_row: Mapping[Name, Mapping[Seed, float]], level: float = 0.95
) -> dict[Name, RankInterval]:
    """Return the possible ranks of every row {seed: score} (more is better), simultaneously at `level`.

    A rank is at least 1 + the number of significantly better rows. It is at most the number of rows − the number of
    significantly worse rows. Significance comes from paired t-tests of all pairs with Holm's correction. This is the
    step-down construction of Mogstad et al. 2024 (Inference for Ranks, Review of Economic Studies 91) with Holm in
    place of their bootstrap, which needs more seeds. Pairs with fewer than 3 common seeds exclude nothing. A nonzero
    difference that is equal for every seed has no p, but it counts as significant, as for the best rows of a table.
    """
    _checked_level(level)
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(s for row in scores_by_row.values() for s in row))}
    scores = np.full((len(scores_by_row), len(seeds)), math.nan)
    for i, (name, row) in enumerate(scores_by_row.items()):
        scores[i, [seeds[seed] for seed in row]] = _finite(list(row.values()), f"row {name}")
    first, second = np.triu_indices(len(scores), 1)
    differences = scores[first] - scores[second]
    n = np.isfinite(differences).sum(axis=1)
    mean = np.nansum(differences, axis=1) / np.maximum(n, 1)
    squares = np.nansum((differences - mean[:, None]) ** 2, axis=1)
    std = np.sqrt(squares / np.maximum(n - 1, 1))
    rounding = 1e-12 * np.nanmax(np.abs(scores), initial=0.0)
    std[std <= rounding] = 0.0
    constant = (std == 0) & (np.abs(mean) > rounding) & (n >= LEAST_SEEDS)
    separable = constant | (holm(_paired_p(mean, std, n)) <= 1 - level)
    better = np.zeros((len(scores), len(scores)), bool)
    better[first, second] = separable & (mean > 0)
    better[second, first] = separable & (mean < 0)
    place = places({name: math.fsum(row.values()) / len(row) for name, row in scores_by_row.items()})
    method = f"{100 * level:g} % simultaneous, paired t-tests of {len(first)} pairs with Holm's correction"
    return {
        name: RankInterval(
            rank=1 + sum(other < place[name] for other in place.values()),
            low=1 + int(better[:, i].sum()),
            high=len(scores) - int(better[i].sum()),
            method=method,
        )
        for i, name in enumerate(scores_by_row)
    }


def _paired_p(
    mean: np.ndarray | np.floating, std: np.ndarray | np.floating, n: np.ndarray | np.integer
) -> np.ndarray:
    """Return the two-sided p of the paired t-test; 1 if all differences are 0.

    nan for fewer than 3 pairs, or without any spread around a mean ≠ 0.
    """
    from scipy import special

    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(n - 1, -np.abs(mean) / (std / np.sqrt(n)))
    p = np.where(std == 0, np.where(mean == 0, 1.0, math.nan), p)
    return np.where(n < LEAST_SEEDS, math.nan, p)


def _half_width(values: Sequence[float], level: float, over: str) -> tuple[float, str]:
    """Return the half width of the t-interval of the mean, and its description."""
    _checked_level(level)
    n = len(values)
    if n < LEAST_SEEDS:
        return math.nan, f"{n} {over}: no interval (from {LEAST_SEEDS})"
    return _quantile(level, n - 1) * _std(values) / math.sqrt(n), f"{100 * level:g} % t-interval over {n} {over}"


@lru_cache(maxsize=256)
def _quantile(level: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's t: ± the quantile covers `level` of the mass."""
    from scipy import stats

    return float(stats.t.isf((1 - level) / 2, freedom))


def _std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    if max(values) == min(values):
        return 0.0  # equal values may differ from their rounded mean
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _finite(values: Iterable[float], name: str) -> list[float]:
    """Return the values as a list of floats. For a handful of seeds, numpy takes ten times as long."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError(f"{name}: no value")
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value} is not a score; leave failed runs out and say so")
    return values


def _checked_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is outside (0, 1); 0.95 is 95 %")
