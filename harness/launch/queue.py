"""The queue of trials: those with a checkpoint first, then the longest; a retry goes to the front.

Trials are taken one at a time, when there is room. So a trial whose worker died is the next to run, before any that
never started, and no trial is assigned to a node before the node is free.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.config import Trial

# A retry would fail in the same way. A loss that diverged is not retried on any device: an arm that may start over
# until it succeeds would be judged by its luckiest attempt.
FINAL = ("diverged", "out of memory", "refused")
Bundle = dict[str, float]  # {"CPU": 1, "GPU": 0.5}: what a trial occupies


@dataclass
class Entry:
    """A trial in the queue.

    failures  since it last made progress
    attempts  in all
    reached   the epoch it had completed at its last failure
    avoid     the node on which it hung
    """

    trial: Trial
    bundle: Bundle
    failures: int = 0
    attempts: int = 0
    reached: int = 0
    avoid: str | None = None


@dataclass
class Queue:
    """Trials that are waiting and trials that are out; each may fail `retries` + 1 times in a row."""

    retries: int
    waiting: list[Entry] = field(default_factory=list)
    out: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        trials: Sequence[Trial],
        bundles: Mapping[str, Bundle],
        costs: Mapping[str, float],
        begun: Iterable[str] = (),
        retries: int = 2,
    ) -> "Queue":
        """Return the queue of `trials`: those with a checkpoint (`begun`, ids) first, then the longest.

        `bundles` and `costs` are by trial id. Equal trials keep their order, so that seeds take turns.
        """
        begun = set(begun)
        ordered = sorted(trials, key=lambda trial: (trial.id not in begun, -costs.get(trial.id, 0.0)))
        return cls(retries, [Entry(trial, bundles[trial.id]) for trial in ordered])

    def __len__(self) -> int:
        """Return how many trials have not ended."""
        return len(self.waiting) + len(self.out)

    def next(self, room: Bundle, possible: Callable[[Bundle], bool] = lambda bundle: True) -> Entry | None:
        """Take the first trial, if there is room for it beside those that are out; return None otherwise.

        A trial that no node can hold at present (not `possible`) is skipped. One that only waits for room is not, or
        a large trial would wait behind small ones for as long as there are any.
        """
        for place, entry in enumerate(self.waiting):
            if not possible(entry.bundle):
                continue
            if not self._fits(entry.bundle, room):
                return None
            del self.waiting[place]
            entry.attempts += 1
            self.out[entry.trial.id] = entry
            return entry
        return None

    def _fits(self, bundle: Bundle, room: Bundle) -> bool:
        return all(
            sum(entry.bundle.get(name, 0.0) for entry in self.out.values()) + wanted <= room.get(name, 0.0) + 1e-6
            for name, wanted in bundle.items()
        )

    def finished(self, trial_id: str) -> None:
        """Remove a trial that has its record."""
        self.out.pop(trial_id, None)

    def failed(self, trial_id: str, kind: str, epoch: int = 0, node: str | None = None) -> bool:
        """Return whether a trial that failed after `epoch` epochs is retried; if so, it is next.

        Progress resets the count of failures: on machines that join and leave, a long trial dies often and still
        finishes. A trial that ran out of memory on a share of a GPU gets a whole one.
        """
        entry = self.out.pop(trial_id)
        if kind == "out of memory" and 0 < entry.bundle.get("GPU", 0.0) < 1:
            entry.bundle = {**entry.bundle, "GPU": 1.0}
            self.waiting.insert(0, entry)
            return True
        entry.failures = 1 if epoch > entry.reached else entry.failures + 1
        entry.reached = max(entry.reached, epoch)
        entry.avoid = node if kind == "timeout" else entry.avoid
        will_retry = kind not in FINAL and entry.failures <= self.retries
        if will_retry:
            self.waiting.insert(0, entry)
        return will_retry

    def returned(self, trial_id: str) -> None:
        """Put a trial back that did not fail: its node was unfit, or Tune ended."""
        entry = self.out.pop(trial_id)
        entry.attempts -= 1
        self.waiting.insert(0, entry)
