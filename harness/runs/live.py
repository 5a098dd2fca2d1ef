"""A run in progress: what is running, what is left, how long it will take.

The engine tells a `View` what happens. `Tally` is the view that counts; the terminal (`reports.terminal`) and the
journal (`harness.runs.journal`), which show the counts, are tallies too.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from harness.config import Trial


class View(Protocol):
    """An observer of a run. All methods return at once and may be called from any thread; here they do nothing.

    Scores are fractions in [0, 1]: validation MAP@R while a trial runs (None without validation), and the
    named `metric`, such as R@1 on test, once it has finished.
    """

    def begin(self, total: int, done: int, slots: int) -> None:
        """Begin a run of `total` trials, of which `done` have a record already, with `slots` at a time."""

    def resized(self, slots: int) -> None:
        """Note that machines have joined or left: from now on `slots` trials run at a time."""

    def expect(self, costs: Mapping[str, float]) -> None:
        """Take what each trial is expected to cost: trial id → cost, all in the same unit."""

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        """Note that a trial starts, or starts again, at `where` (a node or GPU; may be empty)."""

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> None:
        """Note that an epoch ended with this mean loss and validation score."""

    def finished(self, trial_id: str, score: float, seconds: float, metric: str = "R@1") -> None:
        """Note that a trial has its record, `seconds` after its first start."""

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        """Note that a trial stopped with an error, and whether it will be retried."""

    def note(self, sentence: str) -> None:
        """Show a sentence that readers of the results should know."""

    def end(self, interrupted: bool) -> None:
        """End the run, or one round of a search: no trial is running any more."""


class SilentView(View):
    """A view that shows nothing."""


class CombinedView(View):
    """Several views combined into one."""

    def __init__(self, *views: View):
        self._views = views

    def begin(self, total: int, done: int, slots: int) -> None:
        for view in self._views:
            view.begin(total, done, slots)

    def resized(self, slots: int) -> None:
        for view in self._views:
            view.resized(slots)

    def expect(self, costs: Mapping[str, float]) -> None:
        for view in self._views:
            view.expect(costs)

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        for view in self._views:
            view.started(trial, where, attempt)

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> None:
        for view in self._views:
            view.progress(trial_id, epoch, epochs, loss, score)

    def finished(self, trial_id: str, score: float, seconds: float, metric: str = "R@1") -> None:
        for view in self._views:
            view.finished(trial_id, score, seconds, metric)

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        for view in self._views:
            view.failed(trial_id, reason, attempt, will_retry)

    def note(self, sentence: str) -> None:
        for view in self._views:
            view.note(sentence)

    def end(self, interrupted: bool) -> None:
        for view in self._views:
            view.end(interrupted)


@dataclass
class Running:
    """A running trial, as of its last report. `resumed`: epochs that an earlier attempt or run had completed."""

    trial: Trial
    where: str
    attempt: int
    since: float
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    score: float | None = None
    resumed: int = 0
    printed: float = 0.0

    def whole(self, now: float) -> float | None:
        """Return the seconds that all epochs take at the pace so far; None before the first epoch has ended."""
        here = self.epoch - self.resumed
        return (now - self.since) * self.epochs / here if here else None

    def rest(self, now: float) -> float:
        """Return the seconds that the remaining epochs take at the pace so far."""
        return (now - self.since) * (self.epochs - self.epoch) / (self.epoch - self.resumed)

    @property
    def name(self) -> str:
        return f"{self.trial.arm.label} {self.trial.repetition}"

    @property
    def place(self) -> str:
        return f"{self.trial.dataset.name}/{self.trial.backbone.name}"


class Tally(View):
    """The view that counts: what is finished, running, given up and left.

    lock        hold it while reading several counts; every method that changes them takes it
    before      trials that had a record when the run began; `completed` are those finished since
    spent_s     seconds that slots were busy, without the trials that are running
    given_up    trial id → reason, of trials that failed and are not retried
    costs       as given to `expect`
    paces       (seconds, cost) of each finished trial
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.lock = clock, threading.RLock()
        self.total = self.before = self.completed = self.retried = 0
        self.slots, self.began, self.spent_s = 1, 0.0, 0.0
        self.running: dict[str, Running] = {}
        self.given_up: dict[str, str] = {}
        self.costs: dict[str, float] = {}
        self.paces: list[tuple[float, float]] = []

    def begin(self, total: int, done: int, slots: int) -> None:
        """Begin a run, or its next round: only `spent_s` carries over."""
        with self.lock:
            self.total, self.before, self.began = total, done, self.clock()
            self.resized(slots)
            self.completed = self.retried = 0
            self.running, self.given_up, self.paces, self.costs = {}, {}, [], {}

    def resized(self, slots: int) -> None:
        with self.lock:
            self.slots = max(slots, 1)

    def expect(self, costs: Mapping[str, float]) -> None:
        with self.lock:
            self.costs = dict(costs)

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        with self.lock:
            running = self.running[trial.id] = Running(trial, where, attempt, self.clock())
            running.epochs = trial.schedule.epochs if trial.arm.at != "floor" else 0

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> None:
        with self.lock:
            if (running := self.running.get(trial_id)) is None:
                return
            if not running.epoch:
                running.resumed = epoch - 1
            running.epoch, running.epochs, running.loss, running.score = epoch, epochs, loss, score

    def finished(self, trial_id: str, score: float, seconds: float, metric: str = "R@1") -> None:
        with self.lock:
            self._stopped(trial_id)
            self.given_up.pop(trial_id, None)
            self.completed += 1
            self.paces.append((seconds, self.cost(trial_id)))

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        with self.lock:
            self._stopped(trial_id)
            if will_retry:
                self.retried += 1
            else:
                self.given_up[trial_id] = reason

    def _stopped(self, trial_id: str) -> None:
        if (running := self.running.pop(trial_id, None)) is not None:
            self.spent_s += self.clock() - running.since

    @property
    def done(self) -> int:
        return self.before + self.completed

    @property
    def cost_s(self) -> float:
        """The seconds that slots have been busy so far, with failed trials and those that are running."""
        with self.lock:
            return self.spent_s + sum(self.clock() - running.since for running in self.running.values())

    def cost(self, trial_id: str) -> float:
        """Return what a trial was expected to cost; 1 for all trials if nothing was expected."""
        return self.costs.get(trial_id, 1.0)

    def time_left(self) -> float | None:
        """Return the seconds until the end; None until a trial or an epoch has ended.

        The expected costs are calibrated by the finished trials or, before there is one, by the epochs that have
        ended. A running trial counts with the epochs it has left, and the longest of them is a lower bound.
        """
        with self.lock:
            now, running = self.clock(), list(self.running.values())
            paces = [trial.whole(now) for trial in running]
            known = self.paces or [
                (pace, self.cost(one.trial.id)) for one, pace in zip(running, paces, strict=True) if pace is not None
            ]
            if not known:
                return None
            rate = sum(seconds for seconds, _ in known) / max(sum(cost for _, cost in known), 1e-12)
            rest = [
                one.rest(now) if pace is not None else max(rate * self.cost(one.trial.id) - (now - one.since), 0.0)
                for one, pace in zip(running, paces, strict=True)
            ]
            return max((sum(rest) + rate * self._waiting()) / self.slots, max(rest, default=0.0))

    def _waiting(self) -> float:
        """Return the cost of all trials that have not started."""
        count = max(self.total - self.done - len(self.given_up) - len(self.running), 0)
        if not self.costs:
            return float(count)
        started = sum(cost for _, cost in self.paces) + sum(map(self.cost, [*self.given_up, *self.running]))
        return max(sum(self.costs.values()) - started, 0.0) if count else 0.0
