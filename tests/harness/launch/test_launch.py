"""Which nodes of a cluster are fit, as they join and leave, and what a driver cleans up; Ray is a stand-in."""

from typing import Any

import pytest

from harness.config import Resources
from harness.launch import clear_leftovers, environment, joined_early, supervise
from harness.runs.errors import RunError
from harness.runs.live import View
from harness.runs.run import Run
from harness.training.pictures import Sources


class Quiet(View):
    """A view that shows nothing."""


class Nodes:
    """Ray as `Cluster` uses it: nodes that exist, and calls that have ended, with their results."""

    def __init__(self):
        self.there, self.calls, self.ended = {}, [], {}

    def nodes(self):
        return [
            {
                "Alive": True,
                "NodeID": name,
                "NodeManagerHostname": name,
                "Resources": {"CPU": float(cpus)},
            }
            for name, cpus in self.there.items()
        ]

    def wait(self, tasks, num_returns, timeout):
        return [task for task in tasks if task in self.ended], []

    def get(self, task):
        answer = self.ended[task]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Call:
    """A call; `on` returns a task."""

    def __init__(self, nodes: Nodes, what: str, apart: bool = False):
        self.nodes, self.what, self.apart = nodes, what, apart

    def on(self, node):
        task = f"{self.what}{' apart' * self.apart} {node.name}"
        self.nodes.calls.append(task)
        self.nodes.ended.pop(task, None)
        return task


@pytest.fixture
def nodes(monkeypatch):
    environment.prepare(None)
    from harness.launch import cluster

    found = Nodes()
    monkeypatch.setattr(cluster, "ray", found)
    monkeypatch.setattr(cluster, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(cluster, "replace", lambda call, apart: Call(call.nodes, call.what, apart))
    return found


@pytest.fixture
def look(nodes):
    """A cluster, and its `look` with answers that are lists of reasons."""
    from harness.launch.cluster import Cluster

    cluster: Any = Cluster("auto")

    def changes():
        found = cluster.look(Call(nodes, "check"), list, Call(nodes, "prepare"))
        return [(what, node.name, *reasons) for what, node, reasons in found]

    return cluster, changes


def test_a_node_joins_when_it_is_fit_and_has_prepared(nodes, look):
    cluster, changes = look
    nodes.there = {"head": 0, "a": 2}
    assert changes() == []
    assert nodes.calls == ["check a"]
    assert cluster.selector({"CPU": 1.0}) == "!in(a)"
    nodes.ended["check a"] = []
    assert changes() == []
    assert nodes.calls == ["check a", "prepare a"]
    assert cluster.selector({"CPU": 1.0}) == "!in(a)"
    nodes.ended["prepare a"] = None
    assert changes() == [("joined", "a")]
    assert cluster.room == {"CPU": 2.0, "GPU": 0}
    assert cluster.selector({"CPU": 1.0}) is None
    nodes.there = {"head": 0}
    assert changes() == [("left", "a")]
    assert not cluster.fit


def test_an_unfit_node_is_checked_again_by_a_new_process(nodes, look, monkeypatch):
    from harness.launch import cluster as module

    cluster, changes = look
    nodes.there, nodes.ended = {"a": 1}, {}
    changes()
    nodes.ended["check a"] = ["its disk is full"]
    assert changes() == [("unfit", "a", "its disk is full")]
    assert changes() == []
    assert nodes.calls == ["check a"]
    monkeypatch.setattr(module, "CHECK_AGAIN_S", 0.0)
    changes()
    assert nodes.calls == ["check a", "check apart a"]
    nodes.ended["check apart a"] = ["its disk is full"]
    assert changes() == []  # nothing new
    changes()
    nodes.ended["check apart a"] = []
    assert changes() == []
    nodes.ended["prepare a"] = None
    assert changes() == [("joined", "a")]
    assert (list(cluster.fit), cluster.unfit) == (["a"], {})


@pytest.mark.parametrize("answer", [ValueError("no such module\nmore"), 3])
def test_a_node_whose_answer_cannot_be_judged_is_unfit(nodes, look, answer):
    _, changes = look
    nodes.there = {"a": 1}
    changes()
    nodes.ended["check a"] = answer
    ((what, name, reason),) = changes()
    assert (what, name) == ("unfit", "a")
    assert reason.startswith("the check failed: ")
    assert "\n" not in reason


@pytest.mark.parametrize("call", ["check a", "prepare a"])
def test_the_answer_of_a_node_that_has_left_is_ignored(nodes, look, call):
    cluster, changes = look
    nodes.there = {"a": 1}
    changes()
    if call == "prepare a":
        nodes.ended["check a"] = []
        changes()
    nodes.there, nodes.ended[call] = {}, []
    assert changes() == []
    nodes.ended["prepare a"] = ConnectionError("gone")
    assert changes() == []
    assert not cluster.fit
    assert not cluster.unfit


def test_slots_follow_the_nodes_and_are_averaged_over_time(nodes, look, monkeypatch):
    from harness.launch import cluster as module
    from harness.launch.cluster import Node

    cluster, _ = look
    clock = iter((90.0, 100.0, 110.0, 140.0, 150.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert cluster.mean_slots == 0
    one = [{"CPU": 2.0}]
    cluster.fit = {"a": Node("a", "a", 4, 0)}
    assert cluster.count_slots(one) == 2  # at 100
    cluster.fit["b"] = Node("b", "b", 5, 0)
    assert cluster.count_slots(one) == 4  # at 110
    cluster.fit = {}
    assert cluster.count_slots(one) == 0  # at 140
    assert cluster.mean_slots == pytest.approx((2 * 10 + 4 * 30 + 0 * 10) / 50)


def test_a_request_to_stop_is_withdrawn_with_a_new_run_but_not_with_a_restarted_driver(tmp_path, monkeypatch):
    monkeypatch.setenv(supervise.REPORT, str(tmp_path / "report"))
    run = Run(tmp_path / "run")
    run.prepare()
    run.request_stop()
    clear_leftovers(run)
    assert not run.stop_requested()
    run.request_stop()  # while this driver was dying
    clear_leftovers(run)
    assert run.stop_requested()
    assert supervise.known_run() == run.identity


def test_a_finished_run_needs_no_cluster():
    """An address without a cluster is an error only when a trial has to run."""
    environment.prepare(None)
    with joined_early("127.0.0.1:1") as cluster:
        assert cluster is None


def test_trials_that_this_machine_cannot_compile_are_refused_before_ray_starts(make_trial, monkeypatch, tmp_path):
    environment.prepare(None)
    from harness.launch.engine import Engine

    run = Run(tmp_path / "run")
    run.prepare()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    alone = Engine(Sources(run.address, device="cpu"), Resources(), Quiet(), [])
    with pytest.raises(RunError, match=r"training.compile is network, but there is no compiler g\+\+ on the PATH"):
        alone.run([make_trial(compile="network")], run)


def test_a_trial_may_use_the_processors_that_belong_to_its_share_of_gpus():
    environment.prepare(None)
    from harness.launch.cluster import Cluster, Node

    found = Cluster()
    assert found.processors({"CPU": 3.0}) == 3
    found.admit(Node("a", "a", 64, 4))
    found.admit(Node("b", "b", 16, 2))
    found.admit(Node("c", "c", 2, 0))
    assert found.processors({"CPU": 1.0}) == 1
    assert found.processors({"CPU": 1.0, "GPU": 0.5}) == 4
    assert found.processors({"CPU": 12.0, "GPU": 1.0}) == 12
    assert found.processors({"CPU": 2.0, "GPU": 2.0}) == 16
    assert found.processors({"CPU": 1.0, "GPU": 0.1}) == 1
