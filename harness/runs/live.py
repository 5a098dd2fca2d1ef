"""A run while it goes on: what is under way, what is left, how long it will take; on a screen, or for others to read.

A driver tells its views what happens. `Tally` keeps the books that every view needs, `Journal` writes them to
`state.json` in the run folder every few seconds, so that `status` can show them on any machine.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.config import Trial
from harness.runs.errors import RunError
from harness.runs.record import now
from harness.runs.run import Run

JOURNAL_EVERY_S = 3.0
SILENT_AFTER_S = 60.0  # a driver that has not written for this long has stopped, or has lost its storage


class View(Protocol):
    """Who watches a run; `reports._terminal.view` is one. All calls return at once and may come from any thread.

    Scores are fractions in [0, 1]: validation MAP@R while a trial runs (None without validation), and the
    `metric` that is named, such as R@1 on test, when it has finished.
    """

    def begin(self, total: int, done: int, slots: int) -> None:
        """The run begins: this many trials in all, this many done before, this many at a time."""

    def resized(self, slots: int) -> None:
        """Machines came or went: from now on this many at a time."""

    def expect(self, costs: Mapping[str, float]) -> None:
        """What each trial that is to run will cost, trial id → cost, in any unit that is the same for all."""

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        """A trial starts, or starts again, at `where` (a node or GPU, may be empty)."""

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> None:
        """An epoch ended with this mean loss and this validation score."""

    def finished(self, trial_id: str, score: float, seconds: float, metric: str = "R@1") -> None:
        """A trial has its record; `seconds` is what it took."""

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        """A trial stopped with an error; it starts again later, or is given up."""

    def note(self, sentence: str) -> None:
        """Something a reader of the results should know."""

    def end(self, interrupted: bool) -> None:
        """Nothing runs any more."""


class Unseen:
    """The view of a run that nobody watches."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Together:
    """Several views as one."""

    def __init__(self, *views: View):
        self._views = views

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*args: Any, **kwargs: Any) -> None:
            for view in self._views:
                getattr(view, name)(*args, **kwargs)

        return tell


@dataclass
class Running:
    """A trial under way, as it was last heard of. `resumed`: epochs that an earlier attempt or run had done."""

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
        """Seconds that all epochs take at the pace so far; None before the first one has ended."""
        here = self.epoch - self.resumed
        return (now - self.since) * self.epochs / here if here else None

    def rest(self, now: float) -> float:
        """Seconds that the epochs left take at the pace so far."""
        return (now - self.since) * (self.epochs - self.epoch) / (self.epoch - self.resumed)

    @property
    def name(self) -> str:
        return f"{self.trial.arm.label} {self.trial.repetition}"

    @property
    def place(self) -> str:
        return f"{self.trial.dataset.name}/{self.trial.backbone.name}"


@dataclass
class Tally:
    """The books of a run: what is done, under way, lost and left. `clock` gives seconds; `costs` as in `expect`."""

    clock: Callable[[], float] = time.monotonic
    total: int = 0
    before: int = 0
    slots: int = 1
    began: float = 0.0
    finished: int = 0
    retried: int = 0
    spent_s: float = 0.0
    running: dict[str, Running] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    paces: list[tuple[float, float]] = field(default_factory=list)  # (seconds, cost) of the finished trials

    def begin(self, total: int, done: int, slots: int) -> None:
        """Open the books of a run, or of its next part: what was spent and expected before stays."""
        self.total, self.before, self.began = total, done, self.clock()
        self.resize(slots)
        self.finished = self.retried = 0
        self.running, self.lost, self.paces, self.costs = {}, {}, [], {}

    def resize(self, slots: int) -> None:
        self.slots = max(slots, 1)

    def start(self, trial: Trial, where: str, attempt: int) -> Running:
        running = Running(trial, where, attempt, self.clock())
        running.epochs = trial.schedule.epochs if trial.arm.at != "floor" else 0
        self.running[trial.id] = running
        return running

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> Running | None:
        running = self.running.get(trial_id)
        if running is not None:
            if not running.epoch:
                running.resumed = epoch - 1
            running.epoch, running.epochs, running.loss, running.score = epoch, epochs, loss, score
        return running

    def finish(self, trial_id: str, seconds: float) -> None:
        self._leave(trial_id)
        self.lost.pop(trial_id, None)
        self.finished += 1
        self.paces.append((seconds, self.cost(trial_id)))

    def fail(self, trial_id: str, reason: str, will_retry: bool) -> None:
        self._leave(trial_id)
        if will_retry:
            self.retried += 1
        else:
            self.lost[trial_id] = reason

    def _leave(self, trial_id: str) -> None:
        if (running := self.running.pop(trial_id, None)) is not None:
            self.spent_s += self.clock() - running.since

    @property
    def done(self) -> int:
        return self.before + self.finished

    @property
    def cost_s(self) -> float:
        """Seconds that slots have been filled so far, trials that failed included."""
        return self.spent_s + sum(self.clock() - some.since for some in self.running.values())

    def cost(self, trial_id: str) -> float:
        """What a trial was expected to cost; all the same where nobody said."""
        return self.costs.get(trial_id, 1.0)

    def time_left(self) -> float | None:
        """Seconds until the end; None while nothing is known.

        What was expected is calibrated by what has finished, or, before that, by the epochs that have ended. A trial
        under way counts by the epochs it has left; the longest of them is the least that is left.
        """
        now, running = self.clock(), list(self.running.values())
        paces = [some.whole(now) for some in running]
        known = self.paces or [
            (pace, self.cost(some.trial.id)) for some, pace in zip(running, paces, strict=True) if pace is not None
        ]
        if not known:
            return None
        rate = sum(seconds for seconds, _ in known) / max(sum(cost for _, cost in known), 1e-12)
        rest = [
            some.rest(now) if pace is not None else max(rate * self.cost(some.trial.id) - (now - some.since), 0.0)
            for some, pace in zip(running, paces, strict=True)
        ]
        return max((sum(rest) + rate * self._waiting(running)) / self.slots, max(rest, default=0.0))

    def _waiting(self, running: list[Running]) -> float:
        """The cost of all trials that have not started."""
        count = max(self.total - self.done - len(self.lost) - len(running), 0)
        if not self.costs:
            return float(count)
        started = sum(cost for _, cost in self.paces) + sum(map(self.cost, [*self.lost, *self.running]))
        return max(sum(self.costs.values()) - started, 0.0) if count else 0.0


class Journal:
    """The view that writes `state.json`, in a thread of its own: storage that hangs must not hold up the run.

    `stop` is called once when somebody asks the run to stop (`Run.ask_to_stop`), or when the run is `lost` to another
    driver, which took this one for dead.
    """

    def __init__(
        self,
        run: Run,
        about: Mapping[str, Any],
        stop: Callable[[], None] = lambda: None,
        lost: Callable[[], bool] = lambda: False,
    ):
        self._run, self._about, self._stop, self._lost = run, dict(about), stop, lost
        self._tally, self._lock = Tally(), threading.RLock()
        self._state, self._beat, self._began = "starting", 0, now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)
        self._thread.start()

    def begin(self, total: int, done: int, slots: int) -> None:
        with self._lock:
            self._tally.begin(total, done, slots)
            self._state = "running"

    def resized(self, slots: int) -> None:
        with self._lock:
            self._tally.resize(slots)

    def expect(self, costs: Mapping[str, float]) -> None:
        with self._lock:
            self._tally.costs = dict(costs)

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        with self._lock:
            self._tally.start(trial, where, attempt)

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> None:
        with self._lock:
            self._tally.progress(trial_id, epoch, epochs, loss, score)

    def finished(self, trial_id: str, score: float, seconds: float, metric: str = "R@1") -> None:
        with self._lock:
            self._tally.finish(trial_id, seconds)

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        with self._lock:
            self._tally.fail(trial_id, reason, will_retry)

    def note(self, sentence: str) -> None:
        """Notes are for who is there."""

    def end(self, interrupted: bool) -> None:
        """A part of the run, such as a round of a search, has ended; the run has when the journal is closed."""
        with self._lock:
            self._state = "interrupted" if interrupted else self._state

    def close(self) -> None:
        """Write the last state and end the thread."""
        with self._lock:
            self._state = "ended" if self._state != "interrupted" else self._state
        self._over.set()
        self._thread.join(timeout=10 * JOURNAL_EVERY_S)

    def _keep(self) -> None:
        asked = False
        while True:
            over = self._over.wait(JOURNAL_EVERY_S if self._beat else 0)
            lost = self._lost()
            try:
                if not lost:
                    self._run.write_state(self._content())
                if not asked and not over and (lost or self._run.asked_to_stop()):
                    asked = True
                    self._stop()
            except (OSError, RunError):
                pass  # storage that is gone: trials wait for it, and so does the next state
            if over:
                return

    def _content(self) -> dict[str, Any]:
        with self._lock:
            tally, clock = self._tally, self._tally.clock()
            self._beat += 1
            return {
                **self._about,
                "driver": f"process {os.getpid()} on {os.uname().nodename}",
                "state": self._state,
                "beat": self._beat,
                "began": self._began,
                "updated": now(),
                "total": tally.total,
                "done": tally.done,
                "slots": tally.slots,
                "retried": tally.retried,
                "time_left_s": tally.time_left(),
                "spent_s": tally.cost_s,
                "running": [
                    {
                        "id": some.trial.id,
                        "where": some.where,
                        "attempt": some.attempt,
                        "for_s": clock - some.since,
                        "epoch": some.epoch,
                        "epochs": some.epochs,
                        "loss": some.loss,
                        "score": some.score,
                    }
                    for some in tally.running.values()
                ],
            }
