"""The leaderboard as a frame: one line per block, row and metric, with numbers worked by hand."""

import pandas
import pytest

import harness
from harness.leaderboard.columns import LEADERBOARD
from harness.leaderboard.frame import ReportError, leaderboard
from harness.leaderboard.scores import absent, of_records

BASE, VARIANT = {0: 0.40, 1: 0.50, 2: 0.60}, {0: 0.41, 1: 0.53, 2: 0.62}


@pytest.fixture
def records(make_trial, make_record):
    return [
        make_record(make_trial(arm, seed), score)
        for arm, scores in (("contrastive+input", VARIANT), ("contrastive", BASE))
        for seed, score in scores.items()
    ]


def test_scores_alone_are_enough(records):
    table = harness.leaderboard(of_records(records))
    assert list(table) == list(LEADERBOARD)
    assert list(zip(table["arm"], table["metric"], strict=True)) == [
        (arm, metric)
        for arm in ("contrastive", "contrastive+input")
        for metric in ("R@1", "MAP@R", "R-Precision", "R@2")
    ]
    line = table[(table["arm"] == "contrastive+input") & (table["metric"] == "R@1")].iloc[0]
    assert line["mean"] == pytest.approx(0.52)
    assert line["difference"] == pytest.approx(0.02)
    assert line["difference_half"] == pytest.approx(4.302652729911275 * 0.01 / 3**0.5)  # std of 0.01, 0.03, 0.02
    assert (line["baseline"], line["n"], line["state"], line["rank"]) == ("contrastive", 3, "ok", 1)
    assert (line["values_by_seed"], line["difference_seeds"]) == ("0:0.41 1:0.53 2:0.62", "0 1 2")


def test_blocks_are_numbered_and_named_by_what_tells_them_apart(records, make_trial, make_record):
    longer = make_record(make_trial("contrastive", 0, epochs=7), 0.9)
    table = leaderboard(of_records([*records, longer])).query("metric == 'R@1'")
    assert table[["block", "factors", "arm"]].astype(str).values.tolist() == [
        ["1", "training.epochs=2", "contrastive"],
        ["1", "training.epochs=2", "contrastive+input"],
        ["2", "training.epochs=7", "contrastive"],
    ]


def test_a_row_without_scores_says_why(records, make_trial):
    scores = of_records(records)
    planned = [*(record.trial for record in records), make_trial("contrastive+feature", 0)]
    table = leaderboard(scores, absent(scores, planned=planned), planned=True)
    line = table[table["arm"] == "contrastive+feature"].iloc[0]
    assert (line["state"], line["reason"], line["n"]) == ("--", "not run yet: seed 0", 0)
    assert pandas.isna(line["mean"])


def test_the_mean_over_folds_counts_and_an_incomplete_seed_does_not(make_trial, make_record):
    def fold(number, seed, score):
        return make_record(make_trial(seed=seed).model_copy(update={"fold": number, "folds": 2}), score)

    table = leaderboard(of_records([fold(1, 0, 0.3), fold(2, 0, 0.5), fold(1, 1, 0.9)]))
    line = table.iloc[0]
    assert (line["values_by_seed"], line["state"], line["reason"]) == (
        "0:0.4",
        "partial",
        "missing: seed 1 (fold 2 of 2)",
    )


def test_a_metric_that_nothing_was_scored_by_is_refused(records):
    with pytest.raises(ReportError, match="no metric in these records named 'R@3'"):
        leaderboard(of_records(records), metrics=["R@3"])


def test_nothing_makes_an_empty_frame():
    assert list(leaderboard(of_records([]))) == list(LEADERBOARD)
