"""What the rows of a block say against each other, metric by metric: which differ, which may be best, how sure.

A column is one metric of one block. In each column there are two families of tests, corrected by Holm apart: every
variant against its own baseline, and the observed best against every other trained row. Nothing is corrected across
columns, and the caption says so. Marks need five seeds; what has fewer is neither tested nor marked.
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
    """The scores of one row in one column; `line` is its line of the leaderboard, which `judge` fills in.

    base       the scores of the row's baseline in the same column; None for baselines and floors
    outcomes   the outcomes of test queries by seed, of the seeds that kept them
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
    """What holds for one column.

    comparisons   variants that have a paired difference: the family that Holm corrects for
    seeds         the fewest seeds that a variant shares with its baseline
    spread        standard deviation of those differences, pooled over variants; None where it cannot be known
    least         the least true difference found with 80 % power with these seeds after Holm; None without spread
    best          the arm with the highest mean of those compared, `best_mean` that mean, and `tied`: how many others
                  are not separable
    unmarked      why no row is marked as best; empty where one is
    classes       median half width of the intervals over test classes; None where outcomes were not kept
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

    column: the scores by the number of their row, floors included.
    """
    for scores in column.values():
        interval = mean_interval(list(scores.by_seed.values()))
        scores.line |= {"n": scores.n, "mean": interval.mean, "interval": interval.method, **_numbers(interval)}
        scores.line |= {"std": _known(interval.std), "best": False, "second": False, "significant": False}
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


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(interval: Interval | PairedDifference, name: str = "") -> dict[str, float | None]:
    """The ends and half the width of an interval by column."""
    return {f"{name}{end}": _known(getattr(interval, end)) for end in ("half", "low", "high")}


def _ends(interval: Interval, name: str) -> dict[str, float | None]:
    return {f"{name}_low": _known(interval.low), f"{name}_high": _known(interval.high)}


def _difference(paired: PairedDifference) -> dict[str, Any]:
    return {
        "difference": paired.mean,
        **_numbers(paired, "difference_"),
        "difference_n": paired.n,
        "difference_seeds": " ".join(map(str, sorted(paired.seeds))),
        "difference_p": _known(paired.p),
        "difference_std": _known(paired.std),
        "difference_interval": paired.method,
    }


def _mark(column: Mapping[int, Scores], trained: Mapping[int, Scores]) -> dict[str, Any]:
    """Mark bold the highest mean and all that are not separable from it, underlined the second highest distinct mean.

    Returns what the summary says of it.
    """
    able = {row: scores for row, scores in trained.items() if scores.n >= MARKS_FROM}
    if len(able) < 2:
        most = max((scores.n for scores in trained.values()), default=0)
        few = f"n = {most} seed{'s are' if most > 1 else ' is'} fewer than {MARKS_FROM}"
        return {"unmarked": few if most < MARKS_FROM else "there is nothing to compare it with"}
    place = places({row: scores.mean for row, scores in column.items()})
    best, *others = sorted(able, key=lambda row: (place[row], row))
    pairs = [paired_difference(able[best].by_seed, able[row].by_seed) for row in others]
    adjusted = holm([pair.p if pair.n >= MARKS_FROM else math.nan for pair in pairs]).tolist()
    able[best].line["compared"] = True
    for row, pair, p in zip(others, pairs, adjusted, strict=True):  # p is nan where nothing varies
        enough = pair.n >= MARKS_FROM
        able[row].line |= {"compared": True, "best_p_holm": (0.0 if math.isnan(p) else p) if enough else None}
    above = min(
        (row for row in column if row not in able and place[row] < place[best]),
        key=lambda row: place[row],
        default=None,
    )
    if above is not None:
        why = "was not trained" if column[above].floor else f"has fewer than {MARKS_FROM} seeds"
        return {"unmarked": f"{column[above].line['arm']} is higher but {why}"}
    tied = [row for row in others if (p := able[row].line["best_p_holm"]) is None or p > ALPHA]
    below = min((place[row] for row in trained if place[row] > place[best]), default=None)
    for row in (best, *tied):
        able[row].line["best"] = True
    for row in others:
        able[row].line["second"] = place[row] == below
    return {"best": able[best].line["arm"], "best_mean": able[best].mean, "tied": len(tied)}


def _test(column: Mapping[int, Scores]) -> None:
    """The dagger: differences to the own baseline that pass Holm's correction for all of the column."""
    pairs = [(scores, scores.paired) for scores in column.values() if scores.paired]
    family = [(scores, paired) for scores, paired in pairs if paired.n >= MARKS_FROM]
    adjusted = holm([paired.p for _, paired in family]).tolist()
    for (scores, _), p in zip(family, adjusted, strict=True):
        if not math.isnan(p):
            scores.line |= {"difference_p_holm": p, "significant": p <= ALPHA}


def _rank(trained: Mapping[int, Scores]) -> None:
    """The ranks that the data do not exclude; none where no row has three seeds."""
    if max((scores.n for scores in trained.values()), default=0) < LEAST_SEEDS:
        return
    for row, rank in rank_intervals({row: scores.by_seed for row, scores in trained.items()}).items():
        trained[row].line |= {"rank": rank.rank, "rank_low": rank.low, "rank_high": rank.high}


def _resample(scores: Scores, own: Mapping[int, ByClass], metric: str) -> None:
    """The bootstrap intervals: over seeds, from five; over test classes, alone and with seeds, of kept outcomes."""
    base = (scores.base.outcomes if scores.base else None) or {}
    if scores.n >= LEAST_BOOTSTRAP_SEEDS:
        values = list(scores.by_seed.values())
        scores.line |= _ends(bootstrap_interval({"": values}, resamples=RESAMPLES), "bootstrap")
    kept = [own[seed] for seed in scores.by_seed if seed in own and metric in own[seed].sums]
    if len(kept) < scores.n or not all(kept[0].fits(other) for other in kept) or len(kept[0].classes) < 2:
        return
    counts, sums = kept[0].counts, np.array([one.sums[metric] for one in kept])
    scores.line |= _ends(class_bootstrap(sums, counts, over_seeds=False), "classes")
    if scores.n >= MARKS_FROM:
        scores.line |= _ends(class_bootstrap(sums, counts, over_seeds=True), "both")
    seeds = scores.paired.seeds if scores.paired else ()
    if len(seeds) >= MARKS_FROM and all(seed in base and base[seed].fits(own[seed]) for seed in seeds):
        apart = np.array([own[seed].sums[metric] - base[seed].sums[metric] for seed in seeds])
        scores.line |= _ends(class_bootstrap(apart, counts, over_seeds=True), "difference_both")


def _power(trained: Mapping[int, Scores]) -> dict[str, Any]:
    """What the seeds of a column can show, and what another test set would change."""
    pairs = [s.paired for s in trained.values() if s.paired and s.paired.n >= LEAST_SEEDS]
    freedom = sum(pair.n - 1 for pair in pairs)
    spread = math.sqrt(math.fsum((pair.n - 1) * pair.std**2 for pair in pairs) / freedom) if freedom else None
    seeds = min((pair.n for pair in pairs), default=0)
    least = least_detectable(spread, seeds, comparisons=len(pairs)) if spread else None
    halves = {name: _median(half(s.line, name) for s in trained.values()) for name in ("classes", "both")}
    return {"comparisons": len(pairs), "seeds": seeds, "spread": spread, "least": least, **halves}


def half(line: Mapping[str, Any], name: str) -> float | None:
    """Return half the width of an interval of a line, such as `classes`; None where there is none."""
    low, high = line.get(f"{name}_low"), line.get(f"{name}_high")
    return None if low is None or high is None else (high - low) / 2


def _median(values: Iterable[float | None]) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.median(values)) if values else None


def plan(summary: Summary) -> tuple[int | None, ...]:
    """Return how many seeds show differences of 1, 0.5 and 0.3 points, at the spread seen; None: over 100,000."""
    return tuple(_seeds(target, summary) for target in TARGETS)


def _seeds(difference: float, summary: Summary) -> int | None:
    if not summary.spread:
        return None
    try:
        return seeds_needed(difference, summary.spread, comparisons=max(summary.comparisons, 1))
    except ValueError:
        return None
