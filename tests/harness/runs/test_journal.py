"""The file that tells other machines the state of a run."""

import time

import pytest

from harness.runs.errors import RunError
from harness.runs.journal import Journal
from harness.runs.run import Run
from harness.runs.status import status


def test_a_journal_writes_the_state_and_notices_a_request_to_stop(tmp_path, make_trial, monkeypatch):
    monkeypatch.setattr("harness.runs.journal.EVERY_S", 0.05)
    run, stopped, trial = Run(tmp_path), [], make_trial()
    run.prepare()
    journal = Journal(run, {"grid": "small"}, lambda: stopped.append(True))
    journal.begin(3, 1, 2)
    journal.started(trial, "node a", 2)
    journal.progress(trial.id, 1, 2, 0.5, 0.25)
    run.request_stop()
    deadline = time.monotonic() + 10
    while not stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    journal.end(interrupted=True)
    journal.close()
    written = run.state()
    assert written is not None
    state, age_s = written
    assert stopped == [True]
    assert age_s < 5
    assert (state["state"], state["total"], state["done"], state["slots"]) == ("interrupted", 3, 1, 2)
    (running,) = state["running"]
    assert (running["id"], running["where"], running["attempt"], running["epoch"]) == (trial.id, "node a", 2, 1)


def test_a_driver_that_lost_its_run_stops_and_writes_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.runs.journal.EVERY_S", 0.05)
    run, stopped = Run(tmp_path), []
    run.prepare()
    journal = Journal(run, {}, lambda: stopped.append(True), lost=lambda: True)
    deadline = time.monotonic() + 10
    while not stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    journal.close()
    assert stopped == [True]
    assert run.state() is None


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "ended", None),
        (KeyboardInterrupt(), "interrupted", None),
        (BrokenPipeError(32, "Broken pipe"), "failed", "its output was closed by the program that read it"),
        (RunError("no node\nadvice"), "failed", "no node"),
    ],
)
def test_the_last_state_tells_how_the_run_ended(tmp_path, error, state, reason):
    run = Run(tmp_path)
    run.prepare()
    Journal(run, {}).close(error)
    written = run.state()
    assert written is not None
    content, _ = written
    assert (content["state"], content.get("reason")) == (state, reason)
    (sentence,) = [s for s in status(run).sentences if s.startswith("driver: none")]
    assert sentence.endswith(f"at {content['updated']}" + (f": {reason}" if reason else ""))
    assert ("stopped with an error" in sentence) is (state == "failed")
