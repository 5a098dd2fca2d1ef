import csv
import io

import pytest

from harness.leaderboard import published
from harness.leaderboard.compose import board_of
from harness.reports.formats import comma_separated, scores


@pytest.fixture
def lines(board):
    return list(csv.DictReader(io.StringIO(comma_separated.render(board))))


def line(lines, arm, metric="R@1"):
    return next(row for row in lines if row["arm"] == arm and row["metric"] == metric)


def test_numbers_in_full_precision_with_the_records_that_made_them(lines, make_trial):
    row = line(lines, "contrastive+input")
    assert float(row["mean"]) == pytest.approx(0.52, abs=1e-15)
    assert float(row["difference"]) == pytest.approx(0.02, abs=1e-15)
    assert float(row["difference_half"]) == pytest.approx(4.302652729911275 * 0.01 / 3**0.5, abs=1e-10)
    assert row["difference_seeds"] == "0 1 2"
    assert row["values_by_seed"] == "0:0.41 1:0.53 2:0.62"
    assert row["records"] == " ".join(f"{s}:{make_trial('contrastive+input', s).id}" for s in range(3))


def test_every_metric_of_every_row_has_a_line_and_what_is_unknown_is_blank(lines):
    assert {row["metric"] for row in lines if row["arm"] == "contrastive"} == {"R@1", "MAP@R", "R-Precision", "R@2"}
    failed = line(lines, "proxy_anchor")
    assert (failed["state"], failed["mean"], failed["n"], failed["records"]) == ("fail", "", "0", "")
    assert failed["reason"] == "seed 0 failed (diverged: loss <nan> & gone)"
    single = line(lines, "pixels")
    assert (single["mean"], single["half"], single["std"]) == ("0.2", "", "")


def test_marks_and_ranks(judged):
    lines = list(csv.DictReader(io.StringIO(comma_separated.render(judged))))
    best, second, base = (line(lines, f"contrastive{end}") for end in ("+feature", "+input", ""))
    assert [(row["best"], row["second"], row["significant"]) for row in (best, second, base)] == [
        ("1", "0", "1"),
        ("1", "1", "1"),
        ("0", "0", "0"),
    ]
    assert [row["rank"] for row in (best, second, base)] == ["1", "2", "3"]
    assert float(best["difference_p_holm"]) == pytest.approx(2 * float(best["difference_p"]))


def test_published_numbers_name_their_source(make_trial, make_record):
    record = make_record(make_trial(dataset="cub200", backbone="resnet50", dim=512), 0.6)
    text = comma_separated.render(board_of([record], published=published.load()))
    theirs = [row for row in csv.DictReader(io.StringIO(text)) if row["source"] != "measured here"]
    row = next(row for row in theirs if row["arm"] == "contrastive+feature" and row["metric"] == "R@1")
    assert (row["mean"], row["state"], row["n"], row["difference"]) == ("0.674", "", "", "")


def test_blocks_apart_name_their_factors(apart):
    rows = list(csv.DictReader(io.StringIO(comma_separated.render(apart))))
    assert {row["factors"] for row in rows} == {"model.dim=16", "model.dim=128"}


def test_scores_are_one_line_a_record_and_metric(board, make_trial):
    rows = list(csv.DictReader(io.StringIO(scores.render(board))))
    assert len(rows) == 8 * 4
    row = next(r for r in rows if r["record"] == make_trial("contrastive+input", 2).id and r["metric"] == "MAP@R")
    assert (row["value"], row["validation"], row["seed"], row["lr"]) == ("0.31", "0.2", "2", "0.001")
    assert (row["model.dim"], row["loss.margin"], row["metrix.at"]) == ("16", "0.5", "input")
