"""Dispatch: which trial starts next, and what follows when one reports, finishes, fails, hangs or loses its node.

A `Dispatcher` belongs to one batch of trials. Tune asks it for trials and tells it what happens (see
`harness.launch.adapters`); it updates the queue, the run folder and the view.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from harness.launch import packing
from harness.launch.cluster import Call, Cluster, Node, last_line, ray
from harness.launch.queue import FINAL, Entry, Queue
from harness.launch.signals import Stop, end_experiment
from harness.runs import patience
from harness.runs.live import View
from harness.runs.record import Failure
from harness.runs.run import Run

GRACE_S = 10.0  # a trial whose own timer has not ended it by then is ended from here


@dataclass(frozen=True)
class Admission:
    """How a node is admitted: `judge` lists what is wrong with its answer to `check`; then it runs `prepare`."""

    check: Call
    judge: Callable[[Any], Sequence[str]]
    prepare: Call


@dataclass
class Attempt:
    """One attempt at a trial, from its hand-over to Tune on.

    before     the failure of an earlier attempt in the run folder
    heard      when it last reported, on the monotonic clock
    node       node id, known with the first report, as are `actor` and `pid`
    withdrawn  it was ended because its node is unfit, which is not its fault
    """

    entry: Entry
    before: Failure | None
    heard: float
    node: str | None = None
    actor: Any = None
    pid: int = 0
    epoch: int = 0
    withdrawn: bool = False

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.heard


class Dispatcher:
    """Starts the trials of a queue and reacts to how they end.

    `admission` is None on a local Ray instance, which nodes neither join nor leave.
    """

    def __init__(
        self,
        run: Run,
        queue: Queue,
        cluster: Cluster,
        view: View,
        stop: Stop,
        timeout_s: float,
        admission: Admission | None = None,
    ):
        self._run, self.queue, self._cluster, self._view = run, queue, cluster, view
        self._stop, self._timeout_s, self._admission = stop, timeout_s, admission
        self._attempts: dict[str, Attempt] = {}  # by trial id, as `queue.out`
        self._noted = ""

    @property
    def over(self) -> bool:
        """Whether nothing is left to start or to wait for, or a stop was requested."""
        return self._stop.requested or not len(self.queue)

    def next(self) -> dict[str, Any] | None:
        """Return what the actor needs to run the next trial; None while there is no room for one."""
        entry = self.queue.next(self._cluster.room, self._cluster.holds)
        if entry is None:
            self.look_around()  # Tune calls nobody else while no trial is running
            if not self.queue.out:
                self._note_shortage()
            return None
        trial, bundle = entry.trial, entry.bundle
        self._attempts[trial.id] = Attempt(entry, self._run.failure(trial), time.monotonic())
        return {
            "id": trial.id,
            "trial": trial.model_dump_json(),
            "attempt": entry.attempts,
            "bundle": bundle,
            "share": bundle.get("GPU", 0.0),
            "ranks": packing.ranks(bundle),
            "processors": self._cluster.processors(bundle),
            "selector": self._cluster.selector(bundle, entry.avoid),
        }

    def _note_shortage(self) -> None:
        bundle = self.queue.waiting[0].bundle
        sentence = f"waiting for a node with {counted(bundle)}"
        if sentence != self._noted:
            self._noted = sentence
            self._view.note(sentence)

    def reported(self, trial_id: str, result: Mapping[str, Any], actor: object) -> None:
        """Process the first report of an attempt, which says where it runs, or the report of an epoch."""
        if (attempt := self._attempts.get(trial_id)) is None:
            return
        attempt.heard = time.monotonic()
        entry = attempt.entry
        if "node" in result:
            attempt.node, attempt.actor, attempt.pid = result["node"], actor, result["pid"]
            self._view.started(entry.trial, self._place(result), entry.attempts)
        elif "epoch" in result:
            attempt.epoch = result["epoch"]
            score = None if math.isnan(result["score"]) else result["score"]
            epochs = entry.trial.schedule.epochs
            self._view.progress(trial_id, result["epoch"], epochs, result["loss"], score)

    def completed(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Process the last report of an attempt that ended by itself: with a record, or with a final failure."""
        if trial_id not in self._attempts:
            return
        if "failed" in result:
            self.failed(trial_id, result["failed"])
        elif result.get("done") and "seconds" in result:
            del self._attempts[trial_id]
            self.queue.finished(trial_id)
            self._view.finished(trial_id, result["score"], result["seconds"], result["metric"])

    def failed(self, trial_id: str, kind: str | None = None, error: str = "") -> None:
        """Record why an attempt failed and let the queue decide whether the trial is retried.

        `kind` is what the attempt reported itself; without it, `error` is Ray's message.
        """
        if (attempt := self._attempts.pop(trial_id, None)) is None:
            return
        if attempt.withdrawn:
            self.queue.returned(trial_id)
            return
        failure = self._failure(attempt, kind, error)
        will_retry = self.queue.failed(trial_id, failure.kind, attempt.epoch, attempt.node)
        self._view.failed(trial_id, failure.reason, attempt.entry.attempts, will_retry)

    def settle(self) -> None:
        """Return trials to the queue whose attempts ended with Tune's loop, unless they have a record by now."""
        for entry in list(self.queue.out.values()):
            done = self._run.record(entry.trial) is not None
            self.queue.finished(entry.trial.id) if done else self.queue.returned(entry.trial.id)
        self._attempts.clear()

    def _failure(self, attempt: Attempt, kind: str | None, error: str) -> Failure:
        """Return why an attempt failed: what its process wrote, if it did, else what is known from outside."""
        trial, node = attempt.entry.trial, self._cluster.fit.get(attempt.node or "")
        failure = self._run.failure(trial)
        if failure is not None and (kind in FINAL or failure != attempt.before):
            return failure
        on = f" on {node.name}" if node and self._cluster.shared else ""
        if attempt.silent_s >= self._timeout_s:
            reason = f"no epoch ended within {self._timeout_s:g} s{on}; logs/{trial.id}.log shows where it hung"
            return self._run.fail(trial, "timeout", reason, error, attempt.entry.attempts)
        reason = f"its process{on} died: {last_line(error)}; its last output is in logs/{trial.id}.log"
        return self._run.fail(trial, "lost", reason, error, attempt.entry.attempts)

    def _place(self, result: Mapping[str, Any]) -> str:
        """Return where a trial runs, in a word or two; nothing on one machine without GPUs."""
        if self._cluster.shared:
            node = self._cluster.fit.get(result["node"])
            gpus = f" GPU {result['gpus']}" if result["gpus"] else ""
            return (node.name if node else result["name"]) + gpus
        return f"GPU {result['gpus']}" if result["gpus"] else ""

    def look_around(self) -> None:
        """End attempts that hang, and note nodes that join or leave; called continually."""
        overdue_s = self._timeout_s + patience.longest_wait_s() + GRACE_S
        for attempt in self._attempts.values():
            if attempt.actor is not None and attempt.silent_s > overdue_s:
                self._end(attempt)
        if self._admission is None:
            return
        changes = self._cluster.look(self._admission.check, self._admission.judge, self._admission.prepare)
        for change, node, reasons in changes:
            if change == "joined":
                self._view.note(f"{node.name} joined with {counted({'CPU': node.cpus, 'GPU': node.gpus})}")
            elif change == "left":
                self._view.note(f"{node.name} left; its trials continue elsewhere")
                if any(map(self._stranded, self._attempts.values())):
                    end_experiment()  # what Tune holds is returned to the queue and submitted again
            else:
                self._view.note(f"{node.name} is alive but runs no trials: {'; '.join(reasons)}")
                self._withdraw_from(node)
        if changes:
            entries = [*self.queue.out.values(), *self.queue.waiting]
            self._view.resized(self._cluster.count_slots([entry.bundle for entry in entries]))

    def _stranded(self, attempt: Attempt) -> bool:
        """Return whether an attempt waits for a node while the only one that could hold it is the one to avoid."""
        fit = [node for node in self._cluster.fit.values() if node.holds(attempt.entry.bundle)]
        return attempt.node is None and [node.id for node in fit] == [attempt.entry.avoid]

    def _withdraw_from(self, node: Node) -> None:
        """End the attempts that Ray started on a node before the node was known to be unfit."""
        for attempt in self._attempts.values():
            if attempt.node == node.id and attempt.actor is not None:
                attempt.withdrawn = True
                self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        """Kill the process of an attempt, even one that is suspended and answers neither Ray nor its own timer."""
        ray.kill(attempt.actor)
        attempt.actor = None
        if (node := self._cluster.fit.get(attempt.node or "")) is not None:
            Call(_kill, (attempt.pid,)).on(node)


def _kill(pid: int) -> None:
    """Kill a process of this machine, if it still exists."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def counted(room: Mapping[str, float]) -> str:
    """Return processors and GPUs in words: `1 processor and 2 GPUs`."""
    cpus, gpus = room.get("CPU", 0.0), room.get("GPU", 0.0)
    return f"{cpus:g} processor{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"
