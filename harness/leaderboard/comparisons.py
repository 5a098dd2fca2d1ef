"""Statistical comparisons of the rows of a block, metric by metric: which differ, which may be best, how sure.

A column is one metric of one block. Each column has two families of tests: every variant against its own baseline,
and the observed best against every other trained row. Holm's correction is applied to each family separately. There
is no correction across columns, and the caption says so. Rows with fewer than five seeds are neither tested nor
marked.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.leaderboard.statistics import (
    LEAST_BOOTSTRAP_SEEDS,
    LEAST_SEEDS,
    Interval,
    PairedDifference,
    bootstrap_interval,
    class_bootstrap,
    holm,
    least_detectable,
    mean_interval,
    paired_difference,
    places,
    rank_intervals,
    seeds_needed,
)
from harness.runs.outcomes import ByClass

MARKS_FROM = 5  # seeds below which no row is marked best and no difference significant (FAIR-11)
ALPHA = 0.05
RESAMPLES = 2000
TARGETS = (0.01, 0.005, 0.003)  # differences that a power plan is made for: 1, 0.5 and 0.3 points


@dataclass
class Scores:
    """The scores of one row in one column.

    line       the line of the leaderboard, which `judge` fills in
    base       the scores of the row's baseline in the same column; None for baselines and floors
    outcomes   the outcomes of test queries by seed, for the seeds that saved them
    """

    by_seed: dict[int, float]
    line: dict[str, Any]
    base: "Scores | None" = None
    outcomes: Mapping[int, ByClass] | None = None
    paired: PairedDifference | None = None

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return self.line["mean"]

    @property
    def floor(self) -> bool:
        return self.line["level"] == "floor"


@dataclass(frozen=True)
class Summary:
    """The summary of one column.

    comparisons   number of variants with a paired difference: the size of the family for Holm's correction
    seeds         the fewest seeds that a variant shares with its baseline
    spread        standard deviation of the paired differences, pooled over variants; None if unknown
    least         the smallest true difference detected with 80 % power after Holm's correction; None without spread
    best          the arm with the highest mean of those compared
    best_mean     its mean
    tied          how many other rows are not separable from it
    unmarked      why no row is marked as best; empty if one is marked
    classes       median half width of the intervals over test classes; None if outcomes were not saved
    both          the same over seeds and test classes
    """

    metric: str
    comparisons: int = 0
    seeds: int = 0
    spread: float | None = None
    least: float | None = None
    best: str = ""
    best_mean: float | None = None
    tied: int = 0
    unmarked: str = ""
    classes: float | None = None
    both: float | None = None


def judge(column: Mapping[int, Scores], metric: str) -> Summary:
    """Fill in the lines of one column: means, differences, tests, marks, ranks and intervals.

    column: the scores by row number, floors included.
    """
    for scores in column.values():
        interval = mean_interval(list(scores.by_seed.values()))
        scores.line |= {"n": scores.n, "mean": interval.mean, "interval": interval.method, **_numbers(interval)}
        scores.line |= {"std": _finite_or_none(interval.std), "best": False, "second": False, "significant": False}
        scores.line["compared"] = False
    for scores in column.values():
        if scores.base is not None and scores.by_seed.keys() & scores.base.by_seed.keys():
            scores.paired = paired_difference(scores.by_seed, scores.base.by_seed)
            scores.line |= _difference(scores.paired)
    trained = {row: scores for row, scores in column.items() if not scores.floor}
    marked = _mark(column, trained)
    _test(column)
    _rank(trained)
    for scores in column.values():
        if scores.outcomes is not None:
            _resample(scores, scores.outcomes, metric)
    return Summary(metric, **marked, **_power(trained))


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(interval: Interval | PairedDifference, name: str = "") -> dict[str, float | None]:
    """Return the ends and the half width of an interval, by column."""
    return {f"{name}{end}": _finite_or_none(getattr(interval, end)) for end in ("half", "low", "high")}


def _ends(interval: Interval, name: str) -> dict[str, float | None]:
    return {f"{name}_low": _finite_or_none(interval.low), f"{name}_high": _finite_or_none(interval.high)}


def _difference(paired: PairedDifference) -> dict[str, Any]:
    return {
        "difference": paired.mean,
        **_numbers(paired, "difference_"),
        "difference_n": paired.n,
        "difference_seeds": " ".join(map(str, sorted(paired.seeds))),
        "difference_p": _finite_or_none(paired.p),
        "difference_std": _finite_or_none(paired.std),
        "difference_interval": paired.method,
    }


def _mark(column: Mapping[int, Scores], trained: Mapping[int, Scores]) -> dict[str, Any]:
    """Mark the highest mean and all rows not separable from it as best, the second highest distinct mean as second.

    Return the fields of the summary on the best row.
    """
    eligible = {row: scores for row, scores in trained.items() if scores.n >= MARKS_FROM}
    if len(eligible) < 2:
        most = max((scores.n for scores in trained.values()), default=0)
        reason = f"n = {most} seed{'s are' if most > 1 else ' is'} fewer than {MARKS_FROM}"
        return {"unmarked": reason if most < MARKS_FROM else "there is nothing to compare it with"}
    place = places({row: scores.mean for row, scores in column.items()})
    best, *others = sorted(eligible, key=lambda row: (place[row], row))
    pairs = [paired_difference(eligible[best].by_seed, eligible[row].by_seed) for row in others]
    adjusted = holm([pair.p if pair.n >= MARKS_FROM else math.nan for pair in pairs]).tolist()
    eligible[best].line["compared"] = True
    for row, pair, p in zip(others, pairs, adjusted, strict=True):  # p is nan where nothing varies
        enough = pair.n >= MARKS_FROM
        eligible[row].line |= {"compared": True, "best_p_holm": (0.0 if math.isnan(p) else p) if enough else None}
    above = min(
        (row for row in column if row not in eligible and place[row] < place[best]),
        key=lambda row: place[row],
        default=None,
    )
    if above is not None:
        reason = "was not trained" if column[above].floor else f"has fewer than {MARKS_FROM} seeds"
        return {"unmarked": f"{column[above].line['arm']} is higher but {reason}"}
    tied = [row for row in others if (p := eligible[row].line["best_p_holm"]) is None or p > ALPHA]
    below = min((place[row] for row in trained if place[row] > place[best]), default=None)
    for row in (best, *tied):
        eligible[row].line["best"] = True
    for row in others:
        eligible[row].line["second"] = place[row] == below
    return {"best": eligible[best].line["arm"], "best_mean": eligible[best].mean, "tied": len(tied)}


def _test(column: Mapping[int, Scores]) -> None:
    """Mark differences from the baseline that are significant after Holm's correction over the column."""
    pairs = [(scores, scores.paired) for scores in column.values() if scores.paired]
    family = [(scores, paired) for scores, paired in pairs if paired.n >= MARKS_FROM]
    adjusted = holm([paired.p for _, paired in family]).tolist()
    for (scores, _), p in zip(family, adjusted, strict=True):
        if not math.isnan(p):
            scores.line |= {"difference_p_holm": p, "significant": p <= ALPHA}


def _rank(trained: Mapping[int, Scores]) -> None:
    """Add the ranks that the data do not exclude, unless no row has three seeds."""
    if max((scores.n for scores in trained.values()), default=0) < LEAST_SEEDS:
        return
    for row, rank in rank_intervals({row: scores.by_seed for row, scores in trained.items()}).items():
        trained[row].line |= {"rank": rank.rank, "rank_low": rank.low, "rank_high": rank.high}


def _resample(scores: Scores, outcomes: Mapping[int, ByClass], metric: str) -> None:
    """Add the bootstrap intervals: over seeds (from five), over test classes, and over both."""
    base = (scores.base.outcomes if scores.base else None) or {}
    if scores.n >= LEAST_BOOTSTRAP_SEEDS:
        values = list(scores.by_seed.values())
        scores.line |= _ends(bootstrap_interval({"": values}, resamples=RESAMPLES), "bootstrap")
    saved = [outcomes[seed] for seed in scores.by_seed if seed in outcomes and metric in outcomes[seed].sums]
    if len(saved) < scores.n or not all(saved[0].fits(other) for other in saved) or len(saved[0].classes) < 2:
        return
    counts, sums = saved[0].counts, np.array([by_class.sums[metric] for by_class in saved])
    scores.line |= _ends(class_bootstrap(sums, counts, over_seeds=False), "classes")
    if scores.n >= MARKS_FROM:
        scores.line |= _ends(class_bootstrap(sums, counts, over_seeds=True), "both")
    seeds = scores.paired.seeds if scores.paired else ()
    if len(seeds) >= MARKS_FROM and all(seed in base and base[seed].fits(outcomes[seed]) for seed in seeds):
        differences = np.array([outcomes[seed].sums[metric] - base[seed].sums[metric] for seed in seeds])
        scores.line |= _ends(class_bootstrap(differences, counts, over_seeds=True), "difference_both")


def _power(trained: Mapping[int, Scores]) -> dict[str, Any]:
    """Return the fields of the summary on power and on the variation over test classes."""
    pairs = [s.paired for s in trained.values() if s.paired and s.paired.n >= LEAST_SEEDS]
    freedom = sum(pair.n - 1 for pair in pairs)
    spread = math.sqrt(math.fsum((pair.n - 1) * pair.std**2 for pair in pairs) / freedom) if freedom else None
    seeds = min((pair.n for pair in pairs), default=0)
    least = least_detectable(spread, seeds, comparisons=len(pairs)) if spread else None
    halves = {name: _median(half(s.line, name) for s in trained.values()) for name in ("classes", "both")}
    return {"comparisons": len(pairs), "seeds": seeds, "spread": spread, "least": least, **halves}


def half(line: Mapping[str, Any], name: str) -> float | None:
    """Return the half width of an interval of a line, such as `classes`; None if there is none."""
    low, high = line.get(f"{name}_low"), line.get(f"{name}_high")
    return None if low is None or high is None else (high - low) / 2


def _median(values: Iterable[float | None]) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.median(values)) if values else None


def plan(summary: Summary) -> tuple[int | None, ...]:
    """Return how many seeds detect differences of 1, 0.5 and 0.3 points at this spread; None: over 100,000."""
    return tuple(_seeds(target, summary) for target in TARGETS)


def _seeds(difference: float, summary: Summary) -> int | None:
    if not summary.spread:
        return None
    try:
        return seeds_needed(difference, summary.spread, comparisons=max(summary.comparisons, 1))
    except ValueError:
        return None
