"""The engine: it submits the trials of a grid until each has a record, has failed for good, or the user stops it.

A trial is a Tune trial whose steps are epochs; workers are reused, so a process imports torch once. A trial is done
when it has a record: every invocation submits only those without one, whatever happened in the last.
"""

import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from ray import tune

from harness.config import Resources, Trial
from harness.grid import Grid
from harness.launch.adapters import run_experiment
from harness.launch.admission import admission, admit_all, bundles, prepare_images
from harness.launch.cluster import Cluster, opened, ray
from harness.launch.dispatch import Dispatcher
from harness.launch.plan import relative_costs
from harness.launch.preflight import uncompilable
from harness.launch.queue import Queue
from harness.launch.signals import Stop, stoppable
from harness.runs.errors import RunError
from harness.runs.live import View
from harness.runs.run import Run
from harness.training.compiled import limit_s
from harness.training.pictures import Sources

CRASHES = 3  # of Tune's controller, without a trial that ended in between, after which the run ends


class Engine:
    """Ray and what reports on it: the `cluster` that was joined, or the one at `address` once a trial has to run.

    notes  sentences that the view shows when it begins
    """

    def __init__(
        self,
        sources: Sources,
        wants: Resources,
        view: View,
        notes: list[str],
        track: Sequence[tune.Callback] = (),
        address: str | None = None,
        cluster: Cluster | None = None,
    ):
        self._sources, self._wants, self._view, self._notes = sources, wants, view, notes
        self._track, self._address, self._cluster = track, address, cluster
        self._stop, self._open = Stop(), ExitStack()

    @property
    def interrupted(self) -> bool:
        return self._stop.requested

    @property
    def slots(self) -> float:
        """How many trials ran at a time, on average; 0 if none had to run."""
        return self._cluster.mean_slots if self._cluster else 0.0

    def close(self) -> None:
        """Leave ray, or stop it if it was started here."""
        ray.shutdown()
        self._open.close()

    def search(self, grid: Grid, trials: Sequence[Trial], run: Run) -> list[Trial]:
        """Return the trials with the settings that a search in `run`/search chooses; [] if it was interrupted."""
        from harness.launch import search

        folder = run.sub("search")
        folder.prepare()

        def execute(batch: list[Trial]) -> bool:
            self.run(batch, folder)
            return not self.interrupted

        return search.tune(trials, grid.search, folder, execute)

    def run(self, trials: Sequence[Trial], run: Run) -> None:
        """Run the trials that have no record in `run`. Raises RunError if they cannot run here."""
        missing = run.missing(trials)
        if not missing:
            return
        trainings = [trial.training for trial in missing]
        if self._address is None and (problems := uncompilable(trainings, self._sources.device)):
            raise RunError("\n  ".join(problems))
        sources = replace(self._sources, out=run.address, identity=run.identity)
        timeout_s = limit_s(trainings, self._wants.epoch_timeout_s)
        costs = relative_costs(missing, sources.data, sources.cache)
        if self._cluster is None:
            self._cluster = self._open.enter_context(opened(self._address))
        cluster = self._cluster
        required = admission(missing, sources) if cluster.shared else None
        if not cluster.fit:
            admit_all(cluster, required, self._view.note)
        occupied = bundles(cluster, missing, sources, self._wants, run, self._view.note)
        dispatcher = Dispatcher(
            run,
            Queue.of(missing, occupied, costs, run.begun(), self._wants.retries),
            cluster,
            self._view,
            self._stop,
            timeout_s,
            required,
        )
        slots = cluster.count_slots(list(occupied.values()))
        self._view.begin(len(trials), len(trials) - len(missing), slots)
        self._view.expect(costs)
        while self._notes:
            self._view.note(self._notes.pop(0))
        try:
            prepare_images(cluster, missing, sources, required, self._view.note)
            with stoppable(self._stop):
                self._drain(dispatcher, sources, run, timeout_s)
            run.push(run.folder / "trackers")
        finally:
            self._view.end(self.interrupted)

    def _drain(self, dispatcher: Dispatcher, sources: Sources, run: Run, timeout_s: float) -> None:
        """Run Tune until the queue is empty, again where it ended early."""
        crashes, left = 0, 0
        track_in = run.folder / "trackers" if self._track else None
        while not dispatcher.over:
            try:
                run_experiment(dispatcher, sources, timeout_s, self._track, track_in)
            except RunError:
                raise
            except RuntimeError:
                if self.interrupted:
                    return
                crashes = crashes + 1 if len(dispatcher.queue) == left else 1
                left = len(dispatcher.queue)
                traceback.print_exc()
                reason = traceback.format_exc().strip().splitlines()[-1]
                if crashes == CRASHES:
                    raise RunError(f"ray's controller crashed {crashes} times in a row: {reason}") from None
                self._view.note(f"ray's controller crashed; trials without a record are submitted again: {reason}")
            dispatcher.settle()
