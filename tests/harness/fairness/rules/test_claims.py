"""FAIR-13, 14, 15, 21, 24: what a table claims."""

import pytest

from harness.fairness import rules
from harness.fairness.rules import Average, Number, RankTest, Table
from harness.leaderboard.statistics import mean_interval, paired_difference

COLUMN = "cub200 R@1"


def finds(**table):
    return [(f.severity, f.sentence) for f in rules.over_tables([Table("table 1", **table)])]


def test_an_interval_with_its_method_passes():
    for interval in (
        mean_interval([0.5, 0.6, 0.7]),
        paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.4, 2: 0.5}),
    ):
        number = Number("contrastive", COLUMN, interval.mean, interval.half, interval.method, interval.n)
        assert finds(numbers=(number,)) == []


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("", "does not state method, level, n and what it is over (nothing)."),
        ("std over 5 seeds", "does not state method, level, n and what it is over (std over 5 seeds)."),
        ("95 % t-interval over 3 training seeds", "states '95 % t-interval over 3 training seeds', but n is 5."),
    ],
)
def test_an_interval_without_its_method(method, sentence):
    number = Number("contrastive", COLUMN, 0.6, 0.006, method, n=5)
    assert finds(numbers=(number,)) == [("E", f"FAIR-13 {COLUMN} contrastive: ± 0.6 {sentence}")]


def column(*rows):
    """(mean, bold, p of the test against the best)"""
    return tuple(Number(f"row {i}", COLUMN, mean, bold=bold, p=p) for i, (mean, bold, p) in enumerate(rows))


def test_bold_marks_the_best_and_all_rows_not_separable_from_it():
    tested = {"correction": "Holm"}
    assert finds(numbers=column((0.684, True, None), (0.5, False, 0.001)), **tested) == []
    rows = ((0.684, True, None), (0.68, True, 0.2), (0.67, True, 0.06), (0.66, True, None), (0.5, False, 0.001))
    assert finds(numbers=column(*rows), **tested) == [
        ("W", f"FAIR-14 {COLUMN}: best 68.4; 3 rows not separable (Holm, 0.05).")
    ]
    rows = ((0.684, True, None), (0.68, False, 0.2), (0.5, True, 0.001))
    assert [sentence for _, sentence in finds(numbers=column(*rows), **tested)] == [
        f"FAIR-14 {COLUMN}: best 68.4; 1 row not separable (Holm, 0.05).",
        f"FAIR-14 {COLUMN}: best 68.4; 1 row not separable (Holm, 0.05), of which not in bold: row 1.",
        f"FAIR-14 {COLUMN}: best 68.4; in bold though separable from it: row 2.",
    ]


def test_bold_without_a_test():
    assert finds(numbers=column((0.684, True, None), (0.68, False, None))) == [
        ("W", f"FAIR-14 {COLUMN}: best 68.4; 1 row in bold without a test corrected for the number of comparisons.")
    ]
    assert finds(numbers=column((0.684, False, None), (0.68, False, None))) == []


def test_rank_tests_need_datasets():
    assert finds(rank_tests=(RankTest("Wilcoxon", 6),)) == []
    assert finds(rank_tests=(RankTest("Wilcoxon", 4),)) == [
        ("E", "FAIR-15 table 1: Wilcoxon test over 4 datasets: the smallest two-sided p is 0.125, above 0.05.")
    ]


def test_averages_over_the_same_datasets():
    both = frozenset({"cub200", "sop"})
    assert finds(averages=(Average("a", both), Average("b", both))) == []
    assert finds(averages=(Average("a", both), Average("b", frozenset({"cub200"})))) == [
        ("E", "FAIR-21 table 1: averages over unequal sets of datasets: a over cub200, sop; b over cub200.")
    ]


def test_published_numbers_are_grey_cited_and_never_bold():
    shown = Number("theirs", COLUMN, 0.7, grey=True, source="Kim et al., CVPR 2020")
    ours = Number("contrastive", COLUMN, 0.6)
    assert finds(numbers=(shown, ours)) == []
    wrong = Number("theirs", COLUMN, 0.7, bold=True, source="")
    assert finds(numbers=(wrong, ours)) == [
        ("E", f"FAIR-24 {COLUMN} theirs: a published number is not cited and in bold and not grey.")
    ]
    minus = Number("contrastive", f"Δ {COLUMN}", -0.1, minus="theirs")
    assert finds(numbers=(shown, ours, minus)) == [
        ("E", f"FAIR-24 Δ {COLUMN} contrastive: a published number is in a difference with theirs.")
    ]
