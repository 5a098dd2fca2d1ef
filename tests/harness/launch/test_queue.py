"""Which trial runs next, whatever happened before."""

import pytest

from harness.launch.queue import Queue

ONE = {"CPU": 1.0}


@pytest.fixture
def trials(make_trial):
    return [make_trial(seed=seed) for seed in range(4)]


def queue(trials, costs=(1.0, 3.0, 2.0, 3.0), begun=(), retries=2, bundles=(ONE,) * 4):
    ids = [trial.id for trial in trials]
    return Queue.of(trials, dict(zip(ids, bundles, strict=True)), dict(zip(ids, costs, strict=True)), begun, retries)


def seeds(entries):
    return [entry.trial.seed for entry in entries]


def test_trials_under_way_first_then_the_longest(trials):
    assert seeds(queue(trials).waiting) == [1, 3, 2, 0]
    assert seeds(queue(trials, begun=[trials[0].id, trials[2].id]).waiting) == [2, 0, 1, 3]


def test_no_more_are_out_than_there_is_room_for(trials):
    some = queue(trials)
    assert [entry and entry.trial.seed for entry in (some.next({"CPU": 2}) for _ in range(3))] == [1, 3, None]
    some.finished(trials[1].id)
    assert some.next({"CPU": 2}).trial.seed == 2
    assert len(some) == 3


def test_a_trial_that_failed_comes_before_those_that_never_started(trials):
    some = queue(trials)
    first, second = some.next({"CPU": 2}), some.next({"CPU": 2})
    assert some.failed(second.trial.id, "lost", epoch=3)
    assert some.next({"CPU": 2}) is second
    assert second.attempts == 2
    assert some.next({"CPU": 2}) is None
    some.finished(first.trial.id)
    assert some.next({"CPU": 2}).trial.seed == 2


def test_failures_in_a_row_count_and_progress_counts_anew(trials):
    some = queue(trials, retries=1)
    trial = some.next(ONE).trial
    assert some.failed(trial.id, "lost", epoch=0)
    some.next(ONE)
    assert some.failed(trial.id, "lost", epoch=2)  # it got further than the last time
    some.next(ONE)
    assert not some.failed(trial.id, "error", epoch=2)
    assert len(some) == 3


@pytest.mark.parametrize("kind", ["diverged", "out of memory", "refused"])
def test_what_would_end_the_same_is_not_tried_again(trials, kind):
    some = queue(trials)
    assert not some.failed(some.next(ONE).trial.id, kind, epoch=1)


def test_out_of_memory_on_a_share_of_a_gpu_gets_a_whole_one_first(trials):
    room = {"CPU": 4, "GPU": 1}
    some = queue(trials[:1], costs=(1.0,), bundles=({"CPU": 1.0, "GPU": 0.25},))
    trial = some.next(room).trial
    assert some.failed(trial.id, "out of memory")
    assert some.next(room).bundle == {"CPU": 1.0, "GPU": 1.0}
    assert not some.failed(trial.id, "out of memory")


def test_a_trial_that_hung_avoids_the_node(trials):
    some = queue(trials)
    trial = some.next(ONE).trial
    some.failed(trial.id, "timeout", node="a")
    assert some.next(ONE).avoid == "a"


def test_a_trial_for_which_there_is_no_node_keeps_nobody_waiting_but_a_large_one_does(trials):
    large = {"CPU": 1.0, "GPU": 2.0}
    some = queue(trials, bundles=(ONE, large, ONE, ONE))
    nowhere = some.next({"CPU": 2, "GPU": 1}, ever=lambda bundle: bundle.get("GPU", 0) <= 1)
    assert nowhere.trial.seed == 3
    assert some.next({"CPU": 8, "GPU": 1}) is None  # it waits for two GPUs; a node with two may come
    assert some.next({"CPU": 8, "GPU": 2}).trial.seed == 1


def test_a_trial_given_back_has_not_failed(trials):
    some = queue(trials)
    entry = some.next(ONE)
    some.returned(entry.trial.id)
    assert (entry.attempts, entry.failures) == (0, 0)
    assert some.next(ONE) is entry
