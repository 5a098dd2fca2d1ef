"""The books of a run, the file that tells others of it, and what status makes of both."""

import json
import os
import time

import pytest

from harness.runs.errors import RunError
from harness.runs.journal import Journal
from harness.runs.live import Tally, Together, Unseen, View
from harness.runs.run import Run
from harness.runs.status import status


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def tally():
    return Tally(Clock())


def test_time_left_is_calibrated_by_what_finished(tally, make_trial):
    trials = [make_trial(seed=seed, epochs=10) for seed in range(4)]
    tally.begin(4, 0, 2)
    tally.expect(dict(zip([t.id for t in trials], [1.0, 3.0, 2.0, 2.0], strict=True)))
    tally.started(trials[0], "", 1)
    assert tally.time_left() is None
    tally.clock.now = 10
    tally.finished(trials[0].id, 0.5, 10.0)  # ten seconds for a cost of one: seven are left
    assert tally.time_left() == pytest.approx(70 / 2)
    tally.started(trials[1], "", 1)
    tally.clock.now = 20
    assert tally.time_left() == pytest.approx((20 + 40) / 2)  # 30 − 10 of the one under way, 40 that wait
    tally.progress(trials[1].id, 1, 10, 0.5, 0.1)  # an epoch in ten seconds: nine more
    assert tally.time_left() == pytest.approx(90)  # no slot can help with that one


def test_slots_are_paid_for_attempts_that_fail_too(tally, make_trial):
    tally.begin(1, 0, 1)
    trial = make_trial()
    tally.started(trial, "", 1)
    tally.clock.now = 5
    tally.failed(trial.id, "gone", 1, will_retry=True)
    tally.started(trial, "", 2)
    tally.clock.now = 7
    assert tally.cost_s == pytest.approx(7)
    assert tally.retried == 1


def test_every_view_of_several_hears_every_event(make_trial):
    """Whatever a view can be told, with the arguments as they are; a misspelt event is an error."""
    trial = make_trial()
    events = {
        "begin": (3, 1, 2),
        "resized": (4,),
        "expect": ({trial.id: 1.0},),
        "started": (trial, "a", 1),
        "progress": (trial.id, 1, 2, 0.5, None),
        "finished": (trial.id, 0.5, 1.0, "R@1"),
        "failed": (trial.id, "gone", 1, True),
        "note": ("a sentence",),
        "end": (False,),
    }
    assert events.keys() == {name for name in vars(View) if not name.startswith("_")}
    heard = []

    class Recorder(Unseen):
        def __getattribute__(self, name):
            return lambda *given: heard.append((name, given))

    together = Together(Recorder(), Recorder())
    for name, given in events.items():
        getattr(together, name)(*given)
        getattr(Unseen(), name)(*given)
    assert heard == [event for event in events.items() for _ in range(2)]
    with pytest.raises(AttributeError):
        together.begun(3, 1, 2)


def test_a_journal_tells_and_hears(tmp_path, make_trial, monkeypatch):
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
    state, age_s = run.state()
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
def test_the_last_state_says_how_the_run_ended(tmp_path, error, state, reason):
    run = Run(tmp_path)
    run.prepare()
    Journal(run, {}).close(error)
    content, _ = run.state()
    assert (content["state"], content.get("reason")) == (state, reason)
    (sentence,) = [s for s in status(run).sentences if s.startswith("driver: none")]
    assert sentence.endswith(f"at {content['updated']}" + (f": {reason}" if reason else ""))
    assert ("stopped with an error" in sentence) is (state == "failed")


def test_status_of_a_run_under_way_silent_and_ended(tmp_path, make_trial, make_record):
    run = Run(tmp_path)
    run.prepare()
    done, running, failed = (make_trial(seed=seed) for seed in range(3))
    run.finish(make_record(done, 0.75))
    run.fail(failed, "error", "ValueError: no", "", 3)
    some = {"id": running.id, "where": "node a", "attempt": 2, "for_s": 61.0, "epoch": 1, "epochs": 2}
    state = {
        "state": "running",
        "driver": "process 1 on b",
        "running": [some],
        "time_left_s": 7200.0,
        "spent_s": 300.0,
        "slots": 4,
        "updated": "then",
    }
    run.write_state(state)
    found = status(run)
    assert found.title == f"{tmp_path}: 1 done, 1 running, 1 failed"
    assert found.rows == (
        (running.id, "running on node a, attempt 2", "1/2", "", "61"),
        (failed.id, "failed 3x: ValueError: no", "", "", ""),
        (done.id, "done", "", "R@1 75.00", "3"),
    )
    assert "time left: about 2.0 h on 4 slots" in found.sentences
    assert any(sentence.startswith("driver: process 1 on b, heard of") for sentence in found.sentences)
    old = time.time() - 600
    os.utime(tmp_path / "state.json", (old, old))
    assert "it is gone, or has lost its storage" in " ".join(status(run).sentences)
    run.write_state({**state, "state": "ended"})
    assert "driver: none; the last one, process 1 on b, ended at then" in status(run).sentences
    json.dumps(run.state()[0])
