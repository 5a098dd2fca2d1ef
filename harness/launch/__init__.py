"""A grid under Ray Tune, on this machine or on a cluster: the same call, with an address or without.

    environment   what ray reads when it is imported
    cluster       the machines: one alone or many, which of them are fit
    engine        Tune, fed one trial at a time from the queue of `harness.launch.queue`
    actor         the process that runs trials
    supervise     a driver that is started again when the head of its cluster comes back
    remote        the same command on the head of a cluster, relayed

Ray and torch are imported when a grid runs, not with this package: what only supervises a driver stays small.
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
from harness.grid import Grid
from harness.launch import environment, supervise
from harness.launch.supervise import supervised
from harness.runs import storage
from harness.runs.live import Journal, Together, Unseen, View
from harness.runs.record import Failure, Record, Run, RunError, conflicts

if TYPE_CHECKING:
    from harness.launch.cluster import Cluster
    from harness.launch.plan import Plan
    from harness.runs.lease import Lease
    from harness.training.trial import Sources

__all__ = ["Outcome", "Unseen", "View", "run_grid", "supervised"]


@dataclass(frozen=True)
class Outcome:
    """What a run left: its plan, records and failures, whether it was interrupted, how long it took on how many
    slots (on average: machines come and go), and which trials have their record from this run, not one before.
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
        """Trials of the plan without a record."""
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
    """Run what a grid lacks and return what there is.

    `out` is the run folder, or a bucket such as s3://bucket/run; `watch` makes a view on the stream it is given,
    `track` names `engine.TRACKERS`. `address` is that of a ray cluster of which this machine is a node ("auto" or
    host:port), None a ray of this machine alone. `device` is "cpu" to leave GPUs alone. `only` says which trials of
    the plan to run now.

    Raises GridError before anything runs when the grid cannot run, RunError when the folder is in use, not writable,
    or holds results of other settings, and when a node is unfit. Ctrl-C, and `Run.ask_to_stop` from anywhere, ends
    the running epochs' trials, keeps everything, and returns with `interrupted` set.
    """
    environment.prepare(address)
    began = time.perf_counter()
    with early(address) as cluster:
        from harness.launch import engine
        from harness.launch.plan import Plan, make_plan
        from harness.training.trial import Sources

        tracked = engine.trackers(track)
        plan = make_plan(grid, data and Path(data), cache and Path(cache))
        notes = list(plan.notes)
        run = ready(out, notes)
        sources = Sources(
            run.address,
            data and Path(data).resolve(),
            cache and Path(cache).resolve(),
            device,
            grid=(("name", grid.name), ("version", grid.version)),
        )
        with run.lock() as held:
            tidy(run)
            before = comparable(run, grid, plan.trials, sources)
            about = {"grid": grid.name, "address": address}
            with (
                watched(run, about, held, watch, engine.interrupt) as view,
                closing(engine.Engine(sources, grid.resources, view, notes, tracked, address, cluster)) as motor,
            ):
                trials = motor.searched(grid, plan.trials, run) if grid.protocol == "tuned" else plan.trials
                if not motor.interrupted:
                    if grid.protocol == "tuned":
                        refuse_other_settings(run, run.records(), grid, trials)
                    run.remember(grid, trials, plan.refused)
                    motor.run([trial for trial in trials if only(trial)], run)
            conclude(run, held)
            records = tuple(run.records())
            return Outcome(
                Plan(tuple(trials), plan.refused, plan.notes),
                records,
                tuple(run.failures()),
                motor.interrupted,
                time.perf_counter() - began,
                motor.slots,
                frozenset(record.id for record in records) - before,
            )


@contextmanager
def early(address: str | None) -> Iterator[Cluster | None]:
    """The cluster at `address`, whose machines import what trials need while the plan is made here.

    None where there is none yet, which matters only if there is something to run, and for a ray of this machine
    alone, which is started then.
    """
    with ExitStack() as leaving:
        cluster = None
        if address is not None:
            from harness.launch.cluster import opened

            with suppress(supervise.Unreachable):
                cluster = leaving.enter_context(opened(address))
                cluster.warm_up()
        yield cluster


def ready(out: str | Path, notes: list[str]) -> Run:
    """The run at `out`, ready to be written, and the same that a driver before this one worked in."""
    run = Run(out, notes.append, identity=supervise.known_run())
    if run.identity is not None:
        storage.patiently(lambda: None, run.folder)
    else:
        run.require_own()
    run.prepare()
    return run


def tidy(run: Run) -> None:
    """Clear away what a driver that died has left, and what was asked of one that ended."""
    run.sweep()
    if supervise.known_run() is None:
        run.forget_stop()  # of a run before; one that follows a lost driver may have been asked meanwhile
    supervise.remember_run(run.identity)


@contextmanager
def watched(
    run: Run,
    about: Mapping[str, Any],
    held: Lease,
    watch: Callable[[TextIO], View] | None,
    interrupt: Callable[[], None],
) -> Iterator[View]:
    """What tells the screen and the run folder how the run goes on; all else that is printed goes to driver.log."""
    with quiet(run.folder / "driver.log") as screen:
        journal = Journal(run, about, interrupt, lost=lambda: held.lost)
        try:
            yield Together(watch(screen) if watch else Unseen(), journal)
        except KeyboardInterrupt:
            require(held, run)  # nobody pressed a key: the journal interrupts a run that was lost
            raise
        finally:
            journal.close()


def require(held: Lease, run: Run) -> None:
    """Raise RunError where another driver has the run by now."""
    if held.lost:
        raise RunError(
            f"another driver took over {run.place}, because this one did not respond; the run continues there"
        )


def conclude(run: Run, held: Lease) -> None:
    """Leave the run folder as it should be found. Raises RunError where another driver has it by now."""
    require(held, run)
    run.forget_stop()
    run.sweep(ended=True)
    run.push(run.folder / "driver.log")


def comparable(run: Run, grid: Grid, trials: Sequence[Trial], sources: Sources) -> set[str]:
    """The ids of the records in a run folder, each of which may share a table with these trials.

    The settings of a tuned grid's trials are only known after its search: those are left to `refuse_other_settings`.
    Raises RunError where data, weights or settings differ, in the records of a search too.
    """
    records, search = run.records(), run.sub("search")
    if grid.protocol == "tuned":
        refuse_other_data(search, search.records(), trials, sources)
    else:
        refuse_other_settings(run, records, grid, trials)
    refuse_other_data(run, records, trials, sources)
    return {record.id for record in records}


def refuse_other_data(run: Run, records: Sequence[Record], trials: Sequence[Trial], sources: Sources) -> None:
    """Raise RunError when the records of a run were made from other data or weights than are there now."""
    from harness.training.trial import other_origins

    if differences := other_origins(records, trials, sources):
        listed = "\n  ".join(differences)
        raise RunError(
            f"{run.place} holds results from other data:\n  {listed}\n"
            "Results from different data do not share a table: name another folder with --out "
            "(OUT=… of make), or bring the old data back."
        )


def refuse_other_settings(run: Run, records: Sequence[Record], grid: Grid, trials: Sequence[Trial]) -> None:
    """Raise RunError when the records of a run would stand in one table with what they cannot be compared with."""
    differences = conflicts(records, trials)
    versions = {record.grid.get("version") for record in records if record.grid.get("name") == grid.name}
    if others := sorted(versions - {grid.version}):
        differences.append(f"version of grid {grid.name} was {', '.join(map(str, others))} and is now {grid.version}")
    if differences:
        listed = "\n  ".join(differences)
        raise RunError(
            f"{run.place} holds results of other settings:\n  {listed}\n"
            "Results under different settings do not share a table: name another folder with --out (OUT=… of "
            "make), or go back to the old settings."
        )


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Send everything this process prints to `log`; yields a stream on the real screen.

    Ray's threads print to the descriptors themselves, so the descriptors are what is redirected. An exception that
    leaves is raised with the descriptors put back.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with (
        log.open("a", encoding="utf-8") as file,
        os.fdopen(os.dup(kept[0]), "w", buffering=1, encoding=sys.stdout.encoding, errors="replace") as screen,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield screen
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
