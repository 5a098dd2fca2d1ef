import csv
import io

import pytest

from harness.reports import comma_separated


@pytest.fixture
def lines(board):
    return list(csv.DictReader(io.StringIO(comma_separated.render(board))))


def line(lines, arm, metric="R@1"):
    return next(row for row in lines if row["arm"] == arm and row["metric"] == metric)


def test_numbers_in_full_precision_with_the_records_that_made_them(lines, make_trial):
    row = line(lines, "contrastive+input")
    assert float(row["mean"]) == pytest.approx(0.52, abs=1e-15)
    assert float(row["difference"]) == pytest.approx(0.02, abs=1e-15)
    assert float(row["difference_half"]) == pytest.approx(4.302652729911275 * 0.01 / 3**0.5, abs=1e-12)
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


def test_blocks_apart_name_their_factors(apart):
    rows = list(csv.DictReader(io.StringIO(comma_separated.render(apart))))
    assert {row["factors"] for row in rows} == {"model.dim=16", "model.dim=128"}
