"""The frames: tidy lines, dtypes, the order of the tables, and what has no record."""

import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import harness
from harness.leaderboard.columns import SCORES
from harness.leaderboard.scores import absent, curves, of_records
from harness.runs.errors import RunError
from harness.runs.record import Failure
from harness.runs.run import Run

ROOT = Path(__file__).parents[3]
ARMS = (
    "pixels",
    "untrained",
    "proxy_anchor+input",
    "proxy_anchor",
    "contrastive+input",
    "contrastive",
    "nca@2x",
    "nca",
)


@pytest.fixture
def records(make_trial, make_record):
    return [
        make_record(make_trial(arm, seed, dataset=dataset), 0.5 + seed / 100 + place / 1000)
        for place, arm in enumerate(ARMS)
        for dataset in ("omniglot", "glyphs")
        for seed in (1, 0)
    ]


@pytest.fixture
def folder(records, tmp_path):
    run = Run(tmp_path / "run")
    for record in records:
        run.finish(record)
    return run.folder


def test_one_line_per_record_and_metric_with_its_settings(make_trial, make_record):
    record = make_record(make_trial("contrastive[margin=0.3]+input[weight=0.2]", 2), 0.5, provenance={"device": "A"})
    table = of_records([record])
    assert table["metric"].tolist() == ["R@1", "MAP@R", "R-Precision", "R@2"]
    line = table.set_index("metric").loc["MAP@R"]
    assert (line["value"], line["validation"], line["seed"]) == (0.25, 0.2, 2)
    assert (line["arm"], line["loss"], line["level"]) == (record.arm, "contrastive", "input")
    assert (line["loss.margin"], line["metrix.weight"], line["model.dim"]) == (0.3, 0.2, 16)
    assert (line["training.epochs"], line["provenance.device"], line["record"]) == (2, "A", record.id)
    assert table["validation"].isna().tolist() == [False, False, True, True]


def test_columns_have_sensible_types(records):
    table = of_records(records)
    assert list(table)[: len(SCORES)] == list(SCORES)
    assert {str(table[name].dtype) for name in ("dataset", "arm", "level", "metric", "loss")} == {"category"}
    assert (table["value"].dtype, table["seed"].dtype, table["model.dim"].dtype) == ("float64", "Int64", "Int64")
    assert table["metrix.renormalize"].dtype == "boolean"


def test_a_pivot_table_has_the_order_of_the_leaderboard(folder):
    scores = harness.scores(folder)
    table = scores.query("metric == 'R@1'").pivot_table(index="arm", columns="dataset", values="value", observed=True)
    order = ["contrastive", "contrastive+input", "nca", "nca@2x", "proxy_anchor", "proxy_anchor+input"]
    assert list(table.index) == [*order, "untrained", "pixels"]
    assert list(table.columns) == ["glyphs", "omniglot"]
    assert table.loc["nca", "glyphs"] == pytest.approx(0.505 + 7 / 1000)
    board = harness.leaderboard(scores)
    first = board[(board["block"] == 1) & (board["metric"] == "R@1")]
    assert first["arm"].tolist() == list(table.index)
    variants = scores[scores["level"] == "input"].pivot_table(index="arm", values="value", observed=True)
    assert list(variants.index) == ["contrastive+input", "proxy_anchor+input"], "no empty categories"


def test_the_order_of_records_and_what_two_runs_share_change_nothing(records, folder, tmp_path):
    pandas.testing.assert_frame_equal(of_records(records), of_records(records[::-1]))
    other = Run(tmp_path / "other")
    other.finish(records[0])
    assert len(harness.scores(folder, other.folder)) == len(harness.scores(folder))
    with pytest.raises(RunError, match="is not a run folder"):
        harness.scores(tmp_path)


def test_trials_without_a_test_score_have_no_line(make_trial, make_record):
    assert of_records([make_record(make_trial(), test={})]).empty
    assert list(of_records([])) == list(SCORES)


def test_what_has_no_record_has_a_line_with_its_state_and_reason(make_trial, make_record):
    done, lost, waiting = (make_trial(seed=seed) for seed in range(3))
    failure = Failure(id=lost.id, trial=lost, arm="contrastive", kind="diverged", reason="nan", finished="now")
    refused = [(make_trial("contrastive+feature"), "no form")]
    table = absent(of_records([make_record(done)]), [failure], [done, lost, waiting], refused)
    assert table[["state", "seed", "reason", "kind"]].astype(object).where(table.notna(), None).values.tolist() == [
        ["failed", 1, "nan", "diverged"],
        ["missing", 2, "not run yet", None],
        ["refused", None, "no form", None],
    ]
    assert table["training.epochs"].tolist() == [2, 2, 2]


def test_curves_have_one_line_per_record_and_epoch(make_trial, make_record):
    records = [make_record(make_trial(seed=seed)) for seed in (0, 1)]
    table = curves([*records, make_record(make_trial("pixels"), curve=())])
    assert table[["epoch", "loss", "validation"]].values.tolist() == [[1, 1.0, 0.1], [2, 0.5, 0.2]] * 2
    assert table["record"].tolist() == [records[0].id] * 2 + [records[1].id] * 2


@pytest.mark.parametrize(
    "line",
    [
        "import harness",
        "import harness.leaderboard.frame, harness",
        "from harness.leaderboard import published; import harness",
    ],
)
def test_the_leaderboard_is_a_function_whatever_was_imported_before(line):
    code = f"{line}; import pickle; assert pickle.loads(pickle.dumps(harness)) is harness; print(harness.leaderboard)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    assert done.stdout.decode().startswith("<function leaderboard")
