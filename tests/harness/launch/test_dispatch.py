"""What follows when a trial reports, finishes, fails or hangs, and when nodes come and go; Ray is a stand-in."""

import math
import pickle
import time
from typing import Any

import pytest

from harness.launch import environment
from harness.launch.queue import Queue
from harness.runs.live import Tally
from harness.runs.run import Run

ONE = {"CPU": 1.0}
START = {"node": "a", "name": "host a", "gpus": "", "pid": 7}


class Screen(Tally):
    """A view that keeps its notes and failures."""

    def __init__(self):
        super().__init__()
        self.notes, self.failures = [], []

    def note(self, sentence):
        self.notes.append(sentence)

    def failed(self, trial_id, reason, attempt, will_retry):
        super().failed(trial_id, reason, attempt, will_retry)
        self.failures.append((reason, attempt, will_retry))


class Ray:
    """What kills processes."""

    def __init__(self):
        self.killed = []

    def kill(self, actor):
        self.killed.append(actor)


@pytest.fixture
def dispatch(tmp_path, make_trial, monkeypatch):
    """Make a dispatcher of two trials on a node `a` with two processors, whose cluster sees these changes."""
    environment.prepare(None)
    from harness.launch import dispatch as module
    from harness.launch.cluster import Cluster, Node
    from harness.launch.signals import Stop

    fake = Ray()
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module.Call, "on", lambda call, node: fake.killed.append((node.id, call.arguments)))
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0")

    def make(changes=(), bundle=ONE, cpus=2.0, shared=True, timeout_s=100.0):
        run, cluster = Run(tmp_path / "run"), Cluster("auto" if shared else None)
        run.prepare()
        cluster.admit(Node("a", "host a", cpus, 0.0))
        found = list(changes)
        monkeypatch.setattr(cluster, "look", lambda *admission: [found.pop(0)] if found else [])
        trials = [make_trial(seed=seed) for seed in (0, 1)]
        queue = Queue.of(trials, dict.fromkeys([t.id for t in trials], bundle), {}, retries=1)
        nothing = module.Call(list)
        admission = module.Admission(nothing, list, nothing) if shared else None
        made: Any = module.Dispatcher(run, queue, cluster, Screen(), Stop(), timeout_s, admission)
        made.run, made.cluster, made.view, made.killed = run, cluster, made._view, fake.killed
        return made, trials

    return make


def test_trials_are_handed_out_while_there_is_room(dispatch):
    dispatcher, trials = dispatch()
    first, second = dispatcher.next(), dispatcher.next()
    assert [first["id"], second["id"]] == [trial.id for trial in trials]
    assert (first["attempt"], first["bundle"], first["ranks"], first["selector"]) == (1, ONE, 1, None)
    assert first["processors"] == 1
    assert dispatcher.next() is None
    assert not dispatcher.over
    assert dispatcher.view.notes == []


def test_reports_reach_the_view_and_a_record_ends_a_trial(dispatch):
    dispatcher, (trial, _) = dispatch()
    dispatcher.next()
    dispatcher.reported(trial.id, START, "actor")
    dispatcher.reported(trial.id, {"epoch": 1, "loss": 0.5, "score": math.nan}, "actor")
    running = dispatcher.view.running[trial.id]
    assert (running.where, running.epoch, running.epochs, running.loss, running.score) == ("host a", 1, 2, 0.5, None)
    dispatcher.completed(trial.id, {"done": True, "metric": "R@1", "score": 0.5, "seconds": 3.0})
    assert (dispatcher.view.completed, len(dispatcher.queue)) == (1, 1)
    dispatcher.completed(trial.id, {"done": True, "metric": "R@1", "score": 0.5, "seconds": 3.0})
    assert dispatcher.view.completed == 1


def test_a_process_that_dies_is_retried_and_then_given_up(dispatch):
    dispatcher, (trial, _) = dispatch()
    for attempt, will_retry in ((1, True), (2, False)):
        assert dispatcher.next()["attempt"] == attempt
        dispatcher.reported(trial.id, START, "actor")
        dispatcher.failed(trial.id, error="advice\nactor died Worker exit type: SYSTEM_ERROR")
        reason = f"its process on host a died: actor died; its last output is in logs/{trial.id}.log"
        assert dispatcher.view.failures[-1] == (reason, attempt, will_retry)
        failure = dispatcher.run.failure(trial)
        assert (failure.kind, failure.attempts) == ("lost", attempt)


def test_what_a_process_wrote_of_its_failure_is_kept(dispatch):
    dispatcher, (trial, _) = dispatch(shared=False)
    dispatcher.run.fail(trial, "error", "ValueError: of an earlier run", "", 1)
    dispatcher.next()
    dispatcher.failed(trial.id, error="actor died")
    assert dispatcher.view.failures[-1][0].startswith("its process died: actor died")
    dispatcher.next()
    dispatcher.run.fail(trial, "diverged", "loss is nan", "", 2)
    dispatcher.completed(trial.id, {"failed": "diverged"})
    assert dispatcher.view.failures[-1] == ("loss is nan", 2, False)


def test_a_trial_that_hangs_is_killed_and_failed_as_timed_out(dispatch, monkeypatch):
    dispatcher, (trial, _) = dispatch(timeout_s=20.0)
    dispatcher.next()
    dispatcher.reported(trial.id, START, "actor")
    later = time.monotonic() + 25
    monkeypatch.setattr("harness.launch.dispatch.time.monotonic", lambda: later)
    dispatcher.look_around()
    assert dispatcher.killed == []  # its own timer may still end it
    later += 10
    dispatcher.look_around()
    dispatcher.look_around()
    assert dispatcher.killed == ["actor", ("a", (7,))]
    dispatcher.failed(trial.id, error="actor died")
    reason, attempt, will_retry = dispatcher.view.failures[-1]
    assert reason == f"no epoch ended within 20 s on host a; logs/{trial.id}.log shows where it hung"
    assert (attempt, will_retry) == (1, True)
    assert dispatcher.next()["id"] == trial.id


def test_trials_are_withdrawn_from_a_node_that_turns_out_to_be_unfit(dispatch):
    dispatcher, (trial, _) = dispatch()
    dispatcher.next()
    dispatcher.reported(trial.id, START, "actor")
    node = dispatcher.cluster.fit["a"]
    dispatcher.cluster.look = lambda *admission: [("unfit", node, ["its disk is full"])]
    dispatcher.look_around()
    assert dispatcher.view.notes == ["host a is alive but runs no trials: its disk is full"]
    assert dispatcher.killed == ["actor", ("a", (7,))]
    dispatcher.failed(trial.id, error="actor died")
    assert (dispatcher.view.failures, dispatcher.run.failure(trial)) == ([], None)
    assert dispatcher.queue.waiting[0].attempts == 0


def test_nodes_that_join_and_leave_are_noted(dispatch):
    from harness.launch.cluster import Node

    dispatcher, _ = dispatch(
        [("joined", Node("b", "host b", 1.0, 2.0), ()), ("left", Node("b", "host b", 1.0, 2.0), ())]
    )
    dispatcher.look_around()
    dispatcher.look_around()
    assert dispatcher.view.notes == [
        "host b joined with 1 processor and 2 GPUs",
        "host b left; its trials continue elsewhere",
    ]
    assert dispatcher.view.slots == 2


def test_a_trial_that_no_node_can_hold_is_noted_once(dispatch):
    dispatcher, _ = dispatch(bundle={"CPU": 4.0, "GPU": 1.0})
    assert [dispatcher.next(), dispatcher.next()] == [None, None]
    assert dispatcher.view.notes == ["waiting for a node with 4 processors and 1 GPU"]


def test_trials_that_tune_left_are_returned_unless_they_have_a_record(dispatch, make_record):
    dispatcher, (trial, other) = dispatch()
    dispatcher.next()
    dispatcher.next()
    dispatcher.run.finish(make_record(trial))
    dispatcher.settle()
    assert [entry.trial.id for entry in dispatcher.queue.waiting] == [other.id]
    assert not dispatcher.queue.out
    dispatcher._stop.requested = True
    assert dispatcher.over


def test_tune_may_write_its_adapters_to_disk(dispatch):
    """Without the dispatcher, whose locks and threads cannot be pickled."""
    from harness.launch.adapters import Feeder, Messenger

    dispatcher, _ = dispatch()
    for adapter in (Feeder(dispatcher), Messenger(dispatcher)):
        assert vars(pickle.loads(pickle.dumps(adapter))).get("_dispatcher") is None


def suggested(feeder):
    content = feeder.suggest("1")
    assert isinstance(content, dict)
    return content


def test_an_experiment_ends_with_the_queue_or_after_a_batch(dispatch, monkeypatch):
    from harness.launch import adapters

    dispatcher, trials = dispatch()
    monkeypatch.setattr(adapters, "BATCH", 1)
    feeder = adapters.Feeder(dispatcher)
    assert suggested(feeder)["spec"]["id"] == trials[0].id
    assert feeder.suggest("2") is None  # the batch is full, and its trial is running
    dispatcher.queue.finished(trials[0].id)
    assert feeder.suggest("2") == feeder.FINISHED
    assert suggested(adapters.Feeder(dispatcher))["spec"]["id"] == trials[1].id
    dispatcher._stop.requested = True
    assert adapters.Feeder(dispatcher).suggest("1") == feeder.FINISHED
