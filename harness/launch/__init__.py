"""Run a grid under Ray Tune, on this machine or on a cluster: the same call, with an address or without.

    environment   what ray reads when it is imported
    cluster       the machines: one alone or many
    admission     which nodes are fit, and what a trial occupies on them
    engine        submits trials until none is left
    dispatch      which trial starts next, and what follows when one finishes, fails or hangs
    adapters      Ray Tune's interfaces
    signals       Ctrl-C and requests to stop
    actor         the process that runs trials
    supervise     restarts a driver when the head of its cluster comes back
    remote        the same command on the head of a cluster, relayed

Ray and torch are imported when a grid runs, not with this package: a process that only supervises stays small.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.config import Trial
from harness.fairness.comparability import conflicts
from harness.grid import Grid
from harness.launch import environment, supervise
from harness.launch.supervise import supervised
from harness.runs import patience
from harness.runs.errors import RunError
from harness.runs.journal import Journal
from harness.runs.live import CombinedView, SilentView, View
from harness.runs.record import Failure, Record
from harness.runs.run import Run

if TYPE_CHECKING:
    from harness.launch.cluster import Cluster
    from harness.launch.plan import Plan
    from harness.runs.lease import Lease
    from harness.training.pictures import Sources

__all__ = ["Outcome", "SilentView", "View", "run_grid", "supervised"]


@dataclass(frozen=True)
class Outcome:
    """What a run achieved.

    wall_s  seconds that it took
    slots   trials that ran at a time, on average: machines join and leave
    ran     ids of the trials whose record was written by this run, not by an earlier one
    """

    plan: Plan
    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    interrupted: bool
    wall_s: float
    slots: float
    ran: frozenset[str] = frozenset()

    @property
    def missing(self) -> int:
        """The number of trials of the plan without a record."""
        return len({trial.id for trial in self.plan.trials} - {record.id for record in self.records})


def run_grid(
    grid: Grid,
    out: str | Path,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    watch: Callable[[TextIO], View] | None = None,
    track: Sequence[str] = (),
    address: str | None = None,
    device: str | None = None,
    only: Callable[[Trial], bool] = lambda trial: True,
) -> Outcome:
    """Run the trials of a grid that have no record, and return all results.

    out      the run folder, or a bucket such as s3://bucket/run
    watch    makes a view on the stream it is given
    track    names of `adapters.TRACKERS`
    address  a ray cluster of which this machine is a node ("auto" or host:port); None: a local Ray instance
    device   "cpu" to leave GPUs unused
    only     which trials of the plan to run now

    Raises GridError, before anything runs, if the grid cannot run; RunError if the folder is in use, not writable or
    holds results of other settings, or if a node is unfit. Ctrl-C, and `Run.request_stop` on any machine, stops
    the running trials, keeps their checkpoints, and returns with `interrupted` set.
    """
    environment.prepare(address)
    began = time.perf_counter()
    with joined_early(address) as cluster:
        from harness.launch import adapters, signals
        from harness.launch.engine import Engine
        from harness.launch.plan import Plan, make_plan
        from harness.training.pictures import Sources

        tracked = adapters.trackers(track)
        data, cache = (Path(path) if path else None for path in (data, cache))
        plan = make_plan(grid, data, cache)
        notes = list(plan.notes)
        run = opened_run(out, notes)
        sources = Sources(
            run.address,
            data and data.resolve(),
            cache and cache.resolve(),
            device,
            grid=(("name", grid.name), ("version", grid.version)),
        )
        with run.lock() as lease:
            clear_leftovers(run)
            before = comparable_records(run, grid, plan.trials, sources)
            about = {"grid": grid.name, "address": address}
            with (
                observed(run, about, lease, watch, signals.interrupt) as view,
                closing(Engine(sources, grid.resources, view, notes, tracked, address, cluster)) as engine,
            ):
                trials = engine.search(grid, plan.trials, run) if grid.protocol == "tuned" else plan.trials
                if not engine.interrupted:
                    if grid.protocol == "tuned":
                        require_same_settings(run, run.records(), grid, trials)
                    run.remember(grid, trials, plan.refused)
                    engine.run([trial for trial in trials if only(trial)], run)
            clean_up(run, lease)
            records = tuple(run.records())
            return Outcome(
                Plan(tuple(trials), plan.refused, plan.notes),
                records,
                tuple(run.failures()),
                engine.interrupted,
                time.perf_counter() - began,
                engine.slots,
                frozenset(record.id for record in records) - before,
            )


@contextmanager
def joined_early(address: str | None) -> Iterator[Cluster | None]:
    """Yield the cluster at `address`, whose machines import what trials need while the plan is made here.

    Yield None if no cluster is there yet, which matters only if a trial has to run, and for a ray of this machine
    alone, which starts with the first trial.
    """
    with ExitStack() as stack:
        cluster = None
        if address is not None:
            from harness.launch.cluster import opened

            with suppress(supervise.Unreachable):
                cluster = stack.enter_context(opened(address))
                cluster.warm_up()
        yield cluster


def opened_run(out: str | Path, notes: list[str]) -> Run:
    """Return the run at `out`, ready to be written; after a restart, the one of the driver before."""
    run = Run(out, notes.append, identity=supervise.known_run())
    if run.identity is not None:
        patience.retry(lambda: None, run.folder)  # until the folder has its identity
    else:
        run.require_own()
    run.prepare()
    return run


def clear_leftovers(run: Run) -> None:
    """Remove scratch files of a driver that died, and the request to stop of one that ended."""
    run.remove_scratch()
    if supervise.known_run() is None:
        run.clear_stop_request()  # not after a restart: the request may be new
    assert run.identity is not None  # its lock has claimed it
    supervise.remember_run(run.identity)


@contextmanager
def observed(
    run: Run,
    about: Mapping[str, Any],
    lease: Lease,
    watch: Callable[[TextIO], View] | None,
    interrupt: Callable[[], None],
) -> Iterator[View]:
    """Yield a view that reports to the screen and the run folder; other output of this process goes to driver.log."""
    with redirected_output(run.folder / "driver.log") as screen:
        journal, failure = Journal(run, about, interrupt, lost=lambda: lease.lost), None
        try:
            yield CombinedView(watch(screen) if watch else SilentView(), journal)
        except BaseException as error:
            failure = error
            if isinstance(error, KeyboardInterrupt):
                require_held(lease, run)  # if it was lost, the journal interrupted it, not the user
            raise
        finally:
            journal.close(failure)


def require_held(lease: Lease, run: Run) -> None:
    """Raise RunError if another driver has taken the run over."""
    if lease.lost:
        raise RunError(
            f"another driver took over {run.place} because this one did not respond; the run continues there"
        )


def clean_up(run: Run, lease: Lease) -> None:
    """Remove scratch files and requests at the end of a run. Raises RunError if another driver has taken it over."""
    require_held(lease, run)
    run.clear_stop_request()
    run.remove_scratch(ended=True)
    run.push(run.folder / "driver.log")


def comparable_records(run: Run, grid: Grid, trials: Sequence[Trial], sources: Sources) -> set[str]:
    """Return the ids of the records in a run folder, all of which may share a table with these trials.

    Raises RunError if data, weights or settings differ, also those of a search. The settings of a tuned grid's trials
    are only known after its search, so the caller checks them then, with `require_same_settings`.
    """
    records, search = run.records(), run.sub("search")
    if grid.protocol == "tuned":
        require_same_data(search, search.records(), trials, sources)
    else:
        require_same_settings(run, records, grid, trials)
    require_same_data(run, records, trials, sources)
    return {record.id for record in records}


def require_same_data(run: Run, records: Sequence[Record], trials: Sequence[Trial], sources: Sources) -> None:
    """Raise RunError if the records of a run come from other data or weights than there are now."""
    from harness.training.origin import other_origins

    if changes := other_origins(records, trials, sources):
        listed = "\n  ".join(changes)
        raise RunError(
            f"{run.place} holds results from other data:\n  {listed}\n"
            "Results from different data do not share a table: name another folder with --out "
            "(OUT=… of make), or restore the old data."
        )


def require_same_settings(run: Run, records: Sequence[Record], grid: Grid, trials: Sequence[Trial]) -> None:
    """Raise RunError if the records of a run may not share a table with these trials."""
    changes = conflicts(records, trials)
    origins = [record.grid for record in records if record.grid.get("name") == grid.name]
    versions = {origin["version"] for origin in origins if "version" in origin}
    if others := sorted(versions - {grid.version}):
        changes.append(f"version of grid {grid.name} was {', '.join(map(str, others))} and is now {grid.version}")
    if changes:
        listed = "\n  ".join(changes)
        raise RunError(
            f"{run.place} holds results of other settings:\n  {listed}\n"
            "Results under different settings do not share a table: name another folder with --out (OUT=… of "
            "make), or go back to the old settings."
        )


@contextmanager
def redirected_output(log: Path) -> Iterator[TextIO]:
    """Redirect everything that this process prints to `log`; yield a stream to the real screen.

    Ray's threads print to the file descriptors, so these are redirected. They are restored on leaving.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with (
        log.open("a", encoding="utf-8") as file,
        os.fdopen(os.dup(saved[0]), "w", buffering=1, encoding=sys.stdout.encoding, errors="replace") as screen,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield screen
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
