"""Counts of a running run, its time left, and views."""

import pytest

from harness.runs.live import Tally, Together, Unseen, View


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


def test_failed_attempts_count_towards_the_cost(tally, make_trial):
    tally.begin(1, 0, 1)
    trial = make_trial()
    tally.started(trial, "", 1)
    tally.clock.now = 5
    tally.failed(trial.id, "gone", 1, will_retry=True)
    tally.started(trial, "", 2)
    tally.clock.now = 7
    assert tally.cost_s == pytest.approx(7)
    assert tally.retried == 1


def test_every_one_of_several_views_gets_every_event(make_trial):
    """All events of a view, with their arguments; a misspelt event is an error."""
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
        together.begun(3, 1, 2)  # pyright: ignore[reportAttributeAccessIssue] (this is what a type checker finds)
