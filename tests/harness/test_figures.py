"""The figure of a trial, and the analysis in it."""

import pytest

from harness.figures import draw_trial
from harness.trial import run_trial


@pytest.fixture
def analysed(make_trial, tmp_path):
    def analysed(arm):
        trial = make_trial(arm).model_copy(update={"analysis": True})
        dataset = trial.dataset.model_copy(update={"options": {"classes": 16}})
        return run_trial(trial.model_copy(update={"dataset": dataset}), tmp_path)

    return analysed


def test_an_analysed_trial_says_what_its_space_looks_like(analysed, tmp_path):
    record = analysed("multi_similarity+embedding")
    assert 0 < record.analysis["alignment"] < 4
    assert -8 < record.analysis["uniformity"] < 0
    assert record.analysis["utilization_points"] == record.data.images["train"]
    curve = record.analysis["positivity"]
    assert curve["gap"] == pytest.approx(
        [m - c for m, c in zip(curve["measured"], curve["closed_form"], strict=True)]
    )
    assert curve["measured"][0] <= curve["measured"][-1]
    for suffix in ("pdf", "svg", "png"):
        path = draw_trial(record, tmp_path / f"figure.{suffix}")
        first = path.read_bytes()
        assert draw_trial(record, path).read_bytes() == first


def test_a_floor_has_an_analysis_but_no_curve(analysed, tmp_path):
    record = analysed("untrained")
    assert "positivity" not in record.analysis
    with pytest.raises(ValueError, match="was not trained"):
        draw_trial(record, tmp_path / "figure.pdf")


def test_the_analysis_changes_no_id(make_trial):
    assert make_trial().model_copy(update={"analysis": True}).id == make_trial().id
