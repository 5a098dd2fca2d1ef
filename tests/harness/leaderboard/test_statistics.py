"""Expected numbers are from printed t-tables, worked by hand, or simulated; none comes from the code under test."""

import math

import numpy as np
import pytest

from harness.leaderboard import statistics
from harness.leaderboard.statistics import (
    bootstrap_interval,
    holm,
    least_detectable,
    mean_interval,
    paired_difference,
    places,
    rank_intervals,
    seeds_needed,
)

T_975 = {2: 4.302653, 3: 3.182446, 4: 2.776445, 9: 2.262157}  # printed tables, two-sided 95 %


def test_mean_interval_is_mean_and_t_times_standard_error():
    interval = mean_interval([60.0, 61.0, 62.0, 63.0, 64.0])
    half = T_975[4] * math.sqrt(2.5) / math.sqrt(5)
    assert interval.mean == 62
    assert interval.std == pytest.approx(math.sqrt(2.5)), "ddof = 1"
    assert interval.half == pytest.approx(half, rel=1e-6)
    assert (interval.low, interval.high) == pytest.approx((62 - half, 62 + half), rel=1e-6)
    assert (interval.n, interval.method) == (5, "95 % t-interval over 5 training seeds")


def test_another_level():
    assert mean_interval([1, 2, 3], level=0.9).half == pytest.approx(2.919986 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.7]])
def test_under_three_seeds_there_is_no_interval(values):
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(np.mean(values))
    assert all(map(math.isnan, (interval.low, interval.high, interval.half)))
    assert "no interval" in interval.method
    difference = paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    assert math.isnan(difference.half)
    assert math.isnan(difference.p)


def test_paired_difference_by_hand():
    a, b = {0: 0.70, 1: 0.72, 2: 0.71, 3: 0.75}, {3: 0.72, 1: 0.71, 0: 0.68, 2: 0.69, 7: 0.1}
    found = paired_difference(a, b)  # differences 2, 1, 2, 3 points: mean 2, std √(2/3)
    std = 0.01 * math.sqrt(2 / 3)
    assert found.mean == pytest.approx(0.02)
    assert found.std == pytest.approx(std)
    assert found.half == pytest.approx(T_975[3] * std / 2, rel=1e-6)
    # F(t) of Student's t with 3 degrees of freedom in closed form
    t = 0.02 / (std / 2)
    x = t / math.sqrt(3)
    assert found.p == pytest.approx(2 * (0.5 - (x / (1 + x * x) + math.atan(x)) / math.pi), rel=1e-9)
    assert (found.n, found.seeds, found.left_out) == (4, (0, 1, 2, 3), (7,))
    assert found.method == "95 % t-interval over 4 paired seeds"


def test_differences_without_spread_give_no_test():
    same = {0: 0.1, 1: 0.2, 2: 0.3}
    assert paired_difference(same, same).p == 1
    shifted = {seed: score + 0.1 for seed, score in same.items()}  # equal up to rounding
    found = paired_difference(shifted, same)
    assert (found.std, found.half) == (0, 0)
    assert math.isnan(found.p)


def test_no_common_seed():
    found = paired_difference({0: 1.0}, {1: 1.0})
    assert (found.n, found.seeds, found.left_out, found.method) == (0, (), (0, 1), "no seed in common")
    assert math.isnan(found.mean)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([]), "no value"),
        (lambda: mean_interval([0.1, math.nan]), "nan is not a score"),
        (lambda: mean_interval([0.1, 0.2, 0.3], level=95), "95 is outside"),
        (lambda: paired_difference({0: math.inf}, {0: 1.0}), "a_by_seed: inf"),
        (lambda: holm([0.1, 1.2]), "1.2 is outside"),
        (lambda: least_detectable(1.0, 5, target=80), "80 is outside"),
        (lambda: seeds_needed(0.0, 1.0), "more than 100000 seeds"),
        (lambda: bootstrap_interval({}), "no stratum"),
        (lambda: rank_intervals({"a": {0: math.nan}}), "row a"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 → ×4 ×3 ×2 ×1 = .02 .03 .06 .04, made monotone: .02 .03 .06 .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.9]), [0.02, math.nan, 0.9])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert holm([]).shape == (0,)


def test_bootstrap_equals_a_loop_over_resampled_strata():
    strata = {"cub": [60.0, 61.5, 59.0, 62.0, 60.5], "cars": [80.0, 84.0, 81.0, 79.0, 83.0, 82.0]}
    rng = np.random.default_rng(1)
    means = [np.mean([np.mean(rng.choice(values, len(values))) for values in strata.values()]) for _ in range(20_000)]
    found = bootstrap_interval(strata)
    assert found.mean == pytest.approx((60.6 + 81.5) / 2)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.05)
    assert found.std == pytest.approx(np.std(means), abs=0.02)
    assert (found.n, found.method) == (5, "95 % percentile bootstrap over 5 seeds in each of 2 strata")
    assert found == bootstrap_interval(strata), "seeded"
    assert "no bootstrap" in bootstrap_interval({"cub": [1, 2, 3, 4]}).method


def test_bootstrap_of_another_statistic():
    found = bootstrap_interval({"a": [1, 1, 1, 1, 9]}, statistic=lambda samples: np.median(samples[0], axis=-1))
    assert (found.mean, found.low, found.high) == (1, 1, 9)  # P(three or more 9s of 5) = 0.058 > 2.5 %


@pytest.mark.parametrize(("n", "comparisons"), [(3, 1), (5, 1), (5, 9), (10, 3)])
def test_the_least_detectable_difference_is_found_in_80_of_100_simulated_runs(n, comparisons):
    effect = least_detectable(2.0, n, comparisons=comparisons)
    runs = np.random.default_rng(0).normal(effect, 2.0, (100_000, n))
    t = runs.mean(axis=1) / (runs.std(axis=1, ddof=1) / math.sqrt(n))
    critical = {(3, 1): 4.302653, (5, 1): 2.776445, (5, 9): 5.436592, (10, 3): 2.933}[n, comparisons]
    assert np.mean(t > critical) == pytest.approx(0.8, abs=0.006)


def test_least_detectable_scales_with_the_spread_and_needs_three_seeds():
    assert least_detectable(3.0, 5) == pytest.approx(3 * least_detectable(1.0, 5))
    assert math.isnan(least_detectable(1.0, 2))
    assert statistics.power(0.0, 1.0, 5) == pytest.approx(0.025), "by luck, with the right sign"


def test_seeds_needed():
    # published tables of the paired t-test at 80 % power: effect 1.0 needs 10, 0.5 needs 34, 0.2 needs 199
    assert [seeds_needed(effect, 1.0) for effect in (1.0, 0.5, 0.2)] == [10, 34, 199]
    assert seeds_needed(100.0, 1.0) == 3
    n = seeds_needed(0.3, 0.4, comparisons=9)
    assert statistics.power(0.3, 0.4, n, comparisons=9) >= 0.8 > statistics.power(0.3, 0.4, n - 1, comparisons=9)


def test_rank_intervals_separate_what_the_seeds_separate():
    noise = {0: 0.0, 1: 0.2, 2: -0.1, 3: 0.1, 4: -0.2}
    rows = {
        "near": {seed: 70.1 - 0.5 * x for seed, x in noise.items()},
        "best": {seed: 70.0 + x for seed, x in noise.items()},
        "worst": {seed: 50.0 - x for seed, x in noise.items()},
        "new": {0: 60.0, 1: 61.0},
    }
    found = rank_intervals(rows)
    assert {name: (r.rank, r.low, r.high) for name, r in found.items()} == {
        "near": (1, 1, 3),  # new, with two seeds, excludes nothing
        "best": (2, 1, 3),
        "worst": (4, 3, 4),
        "new": (3, 1, 4),
    }
    assert rank_intervals({}) == {}
    assert [(r.low, r.high) for r in rank_intervals({"a": {0: 1.0}, "b": {0: 2.0}}).values()] == [(1, 2), (1, 2)]


def test_class_bootstrap_equals_a_loop_over_redrawn_classes_and_seeds():
    rng = np.random.default_rng(3)
    counts = np.array([3, 5, 2, 8])
    sums = rng.integers(0, counts + 1, (6, 4)).astype(float)

    def loop(over_seeds):
        for _ in range(4000):
            classes = rng.integers(0, 4, 4)
            seeds = rng.integers(0, 6, 6) if over_seeds else range(6)
            yield np.mean([sum(sums[s, c] for c in classes) / sum(counts[c] for c in classes) for s in seeds])

    for over_seeds in (False, True):
        found = statistics.class_bootstrap(sums, counts, over_seeds=over_seeds, resamples=20_000)
        assert found.mean == pytest.approx((sums.sum(axis=1) / 18).mean())
        assert (found.low, found.high) == pytest.approx(np.percentile(list(loop(over_seeds)), [2.5, 97.5]), abs=0.02)
    assert found.method == "95 % percentile bootstrap over 4 test classes and 6 training seeds"
    assert "no bootstrap" in statistics.class_bootstrap(sums[:4], counts, over_seeds=True).method
    with pytest.raises(ValueError, match=r"sums \(6, 4\), counts \(3,\)"):
        statistics.class_bootstrap(sums, counts[:3], over_seeds=False)


def test_variance_shares_of_a_worked_grid():
    # rows ±1, columns ±2, and 0.5 more where both agree: squares 4, 16 and 1 of 21
    row, column = np.array([[-1], [1]]), np.array([[-2, 2]])
    scores = 60 + row + column + 0.5 * np.sign(row * column)
    shares = statistics.variance_shares(scores, ("loss", "level"))
    assert shares == pytest.approx(
        {("loss",): 4 / 21, ("level",): 16 / 21, ("loss", "level"): 1 / 21, (): 0}, abs=1e-12
    )
    assert statistics.variance_shares(scores, ("loss", "level"), order=1)[()] == pytest.approx(1 / 21)
    assert math.isnan(statistics.variance_shares(np.ones((2, 2)), ("loss", "level"))["loss",])
    with pytest.raises(ValueError, match="all must be there"):
        statistics.variance_shares(np.array([1.0, math.nan]), ("loss",))


def test_places_are_of_distinct_means_and_noise_makes_none():
    tenths = math.fsum([0.1] * 3)
    assert places({"a": 0.5, "b": 0.3, "c": 0.1 + 0.2, "d": tenths, "e": 0.7, "f": 0.3 - 1e-7}) == (
        {"a": 2, "b": 3, "c": 3, "d": 3, "e": 1, "f": 4}
    )
    assert places({}) == {}


def test_a_difference_of_rounding_is_none():
    pair = paired_difference(dict.fromkeys(range(5), 0.1 + 0.2), dict.fromkeys(range(5), 0.3))
    assert (pair.mean, pair.p) == (0.0, 1.0)


def test_a_difference_that_is_the_same_with_every_seed_excludes_ranks():
    """As such a row is not bold beside the best one: ranks 1 to 2 would say that it may be."""
    best = {seed: 0.5 + 0.01 * seed for seed in range(5)}
    rows = {"best": best, "again": {seed: score + 1e-15 for seed, score in best.items()}}
    rows["below"] = {seed: score - 0.1 for seed, score in best.items()}
    found = {name: (some.rank, some.low, some.high) for name, some in rank_intervals(rows).items()}
    assert found == {"best": (1, 1, 2), "again": (1, 1, 2), "below": (3, 3, 3)}
    few = rank_intervals({name: {seed: row[seed] for seed in range(2)} for name, row in rows.items()})
    assert (few["below"].low, few["below"].high) == (1, 3)
