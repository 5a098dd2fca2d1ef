"""The order in which trials run: those already begun first, then the longest; what failed goes to the front.

The engine asks for one trial at a time, when there is room for it. So a trial whose worker died is the next to run,
before any that never started, and no trial is promised to a node before the node is free.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.config import Trial

# The same again would end the same. A loss that diverged is not tried again either, on any device: an arm that may
# begin anew until it gets through would be judged by its luckiest attempt.
FINAL = ("diverged", "out of memory", "refused")
Bundle = dict[str, float]  # {"CPU": 1, "GPU": 0.5}: what a trial occupies


@dataclass
class Entry:
    """A trial in the queue. `failures`: how often it has failed since it last got further; `attempts`: in all.

    `avoid`: the node on which it hung, where another may do better.
    """

    trial: Trial
    bundle: Bundle
    failures: int = 0
    attempts: int = 0
    reached: int = 0  # the epoch it had ended when it failed last
    avoid: str | None = None


@dataclass
class Queue:
    """Trials that wait and trials that are out, and how often each may fail in a row (`retries` + 1 times)."""

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
        """The queue of `trials`: those with a checkpoint (`begun`, ids) first, then by cost, the longest first.

        `bundles` and `costs` by trial id. Equal trials stay in their order, so that seeds come in turn.
        """
        begun = set(begun)
        ordered = sorted(trials, key=lambda trial: (trial.id not in begun, -costs.get(trial.id, 0.0)))
        return cls(retries, [Entry(trial, bundles[trial.id]) for trial in ordered])

    def __len__(self) -> int:
        """How many trials have not ended."""
        return len(self.waiting) + len(self.out)

    def next(self, room: Bundle, ever: Callable[[Bundle], bool] = lambda bundle: True) -> Entry | None:
        """The first trial, if what is out leaves room for it within `room`; None while there is none.

        A trial that no node could hold at present (`ever` says so) does not keep the ones behind it waiting; one that
        only has to wait for room does, or a large trial would wait forever behind small ones.
        """
        for place, entry in enumerate(self.waiting):
            if not ever(entry.bundle):
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
        """A trial has its record."""
        self.out.pop(trial_id, None)

    def failed(self, trial_id: str, kind: str, epoch: int = 0, node: str | None = None) -> bool:
        """A trial has failed after `epoch` epochs; whether it will be tried again, at once.

        A failure after progress counts anew: on machines that come and go, a long trial dies often and still ends.
        One that ran out of memory on a share of a GPU gets a whole one.
        """
        entry = self.out.pop(trial_id)
        if kind == "out of memory" and 0 < entry.bundle.get("GPU", 0.0) < 1:
            entry.bundle = {**entry.bundle, "GPU": 1.0}
            self.waiting.insert(0, entry)
            return True
        entry.failures = 1 if epoch > entry.reached else entry.failures + 1
        entry.reached = max(entry.reached, epoch)
        entry.avoid = node if kind == "timeout" else entry.avoid
        again = kind not in FINAL and entry.failures <= self.retries
        if again:
            self.waiting.insert(0, entry)
        return again

    def returned(self, trial_id: str) -> None:
        """A trial that was out comes back without blame: its node was unfit, or the engine stopped."""
        entry = self.out.pop(trial_id)
        entry.attempts -= 1
        self.waiting.insert(0, entry)
