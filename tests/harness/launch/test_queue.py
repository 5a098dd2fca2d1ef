"""Which trial runs next."""

import pytest

from harness.launch.queue import Bundle, Entry, Queue

ONE: Bundle = {"CPU": 1.0}


@pytest.fixture
def trials(make_trial):
    return [make_trial(seed=seed) for seed in range(4)]


def queue(trials, costs=(1.0, 3.0, 2.0, 3.0), begun=(), retries=2, bundles=(ONE,) * 4):
    ids = [trial.id for trial in trials]
    return Queue.of(trials, dict(zip(ids, bundles, strict=True)), dict(zip(ids, costs, strict=True)), begun, retries)


def start(trial_queue: Queue, room: Bundle) -> Entry:
    """Take the next trial, which there must be."""
    entry = trial_queue.next(room)
    assert entry is not None
    return entry


def seeds(entries):
    return [entry.trial.seed for entry in entries]


def test_trials_with_a_checkpoint_first_then_the_longest(trials):
    assert seeds(queue(trials).waiting) == [1, 3, 2, 0]
    assert seeds(queue(trials, begun=[trials[0].id, trials[2].id]).waiting) == [2, 0, 1, 3]


def test_no_more_are_out_than_there_is_room_for(trials):
    trial_queue = queue(trials)
    assert [entry and entry.trial.seed for entry in (trial_queue.next({"CPU": 2}) for _ in range(3))] == [1, 3, None]
    trial_queue.finished(trials[1].id)
    assert start(trial_queue, {"CPU": 2}).trial.seed == 2
    assert len(trial_queue) == 3


def test_a_trial_that_failed_comes_before_those_that_never_started(trials):
    trial_queue = queue(trials)
    first, second = start(trial_queue, {"CPU": 2}), start(trial_queue, {"CPU": 2})
    assert trial_queue.failed(second.trial.id, "lost", epoch=3)
    assert trial_queue.next({"CPU": 2}) is second
    assert second.attempts == 2
    assert trial_queue.next({"CPU": 2}) is None
    trial_queue.finished(first.trial.id)
    assert start(trial_queue, {"CPU": 2}).trial.seed == 2


def test_failures_in_a_row_are_counted_and_progress_resets_the_count(trials):
    trial_queue = queue(trials, retries=1)
    trial = start(trial_queue, ONE).trial
    assert trial_queue.failed(trial.id, "lost", epoch=0)
    trial_queue.next(ONE)
    assert trial_queue.failed(trial.id, "lost", epoch=2)  # it got further than the last time
    trial_queue.next(ONE)
    assert not trial_queue.failed(trial.id, "error", epoch=2)
    assert len(trial_queue) == 3


@pytest.mark.parametrize("kind", ["diverged", "out of memory", "refused"])
def test_failures_that_would_repeat_are_not_retried(trials, kind):
    trial_queue = queue(trials)
    assert not trial_queue.failed(start(trial_queue, ONE).trial.id, kind, epoch=1)


def test_out_of_memory_on_a_share_of_a_gpu_gets_a_whole_one_first(trials):
    room: Bundle = {"CPU": 4, "GPU": 1}
    trial_queue = queue(trials[:1], costs=(1.0,), bundles=({"CPU": 1.0, "GPU": 0.25},))
    trial = start(trial_queue, room).trial
    assert trial_queue.failed(trial.id, "out of memory")
    assert start(trial_queue, room).bundle == {"CPU": 1.0, "GPU": 1.0}
    assert not trial_queue.failed(trial.id, "out of memory")


def test_a_trial_that_hung_avoids_the_node(trials):
    trial_queue = queue(trials)
    trial = start(trial_queue, ONE).trial
    trial_queue.failed(trial.id, "timeout", node="a")
    assert start(trial_queue, ONE).avoid == "a"


def test_a_trial_that_no_node_can_hold_is_skipped_but_a_large_one_is_not(trials):
    large = {"CPU": 1.0, "GPU": 2.0}
    trial_queue = queue(trials, bundles=(ONE, large, ONE, ONE))
    skipping = trial_queue.next({"CPU": 2, "GPU": 1}, possible=lambda bundle: bundle.get("GPU", 0) <= 1)
    assert skipping is not None
    assert skipping.trial.seed == 3
    assert trial_queue.next({"CPU": 8, "GPU": 1}) is None  # it waits for two GPUs; a node with two may come
    assert start(trial_queue, {"CPU": 8, "GPU": 2}).trial.seed == 1


def test_a_returned_trial_has_not_failed(trials):
    trial_queue = queue(trials)
    entry = start(trial_queue, ONE)
    trial_queue.returned(entry.trial.id)
    assert (entry.attempts, entry.failures) == (0, 0)
    assert trial_queue.next(ONE) is entry
