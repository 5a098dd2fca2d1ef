"""Ray Tune runs the trials of a plan: the engine, never the book-keeper.

A trial is a Tune trial whose steps are epochs; actors are reused, so a process imports torch once. Done is what has
a record: every invocation submits only what lacks one, whatever became of the last. Tune's own checkpoints, result
files and restore are not used.
"""

import faulthandler
import gc
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, TextIO

import torch

from harness import registry
from harness.config import Grid, Resources, Trial
from harness.plan import Plan, make_plan
from harness.record import Failure, Record, Run, RunError, conflicts
from harness.selection import FAIR
from harness.train import Diverged
from harness.trial import Sources, prepare_images, steps

BEFORE_RAY = {  # ray reads these when it is imported
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: all listeners on 127.0.0.1, on Linux too
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # its kill aborts the whole grid; the kernel's is an ordinary retry
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
for _name, _value in BEFORE_RAY.items():
    os.environ.setdefault(_name, _value)

try:
    import ray
    from ray import tune
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "a grid runs on ray, which is not installed: pip install 'ray[tune]' (one trial runs without it: "
        "metrix-bench trial)"
    ) from error

OBJECT_STORE_BYTES = 100 * 2**20  # trials exchange nothing but numbers
DRIVER_ATTEMPTS = 3  # a crash of Tune's controller is survived by submitting what lacks a record again


class View(Protocol):
    """Who watches a run; `harness.terminal.view` is one. All calls return at once."""

    def begin(self, total: int, done: int, slots: int) -> None:
        """The run begins: this many trials in all, this many done before, this many at a time."""

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        """A trial starts, or starts again."""

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float) -> None:
        """An epoch ended with this mean loss and this validation score in [0, 1]."""

    def finished(self, trial_id: str, score: float, seconds: float) -> None:
        """A trial has its record; `score` is the test R@1."""

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        """A trial stopped with an error."""

    def note(self, sentence: str) -> None:
        """Something a reader of the results should know."""

    def end(self, interrupted: bool) -> None:
        """Nothing runs any more."""


class Unseen:
    """The view of a run that nobody watches."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@dataclass(frozen=True)
class Outcome:
    """What a run left: its plan, records and failures, whether it was interrupted, how its slots were used, and which
    trials have their record from this run and not from one before."""

    plan: Plan
    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    interrupted: bool
    wall_s: float
    slots: int
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
) -> Outcome:
    """Run what a grid lacks, on this machine's GPUs or processors, and return what there is.

    `out` is the run folder; `watch` makes a view on the stream it is given, `track` names `TRACKERS`. Raises
    GridError before anything runs when the grid cannot run, RunError when the folder is in use, not writable, or
    holds results of other settings. Ctrl-C ends the running epochs' trials, keeps everything, and returns with
    `interrupted` set.
    """
    began, tracked = time.perf_counter(), trackers(track)
    plan = make_plan(grid, data and Path(data), cache and Path(cache))
    notes: list[str] = []
    run = Run(out, warn=notes.append)
    run.prepare()
    with run.lock():
        if grid.protocol != "tuned":
            refuse_strangers(run, grid, plan.trials)
        sources = Sources(
            run.folder.resolve(),
            data and Path(data).resolve(),
            cache and Path(cache).resolve(),
            grid=(("name", grid.name), ("version", grid.version)),
        )
        before = {record.id for record in run.records()}
        with quiet(run.folder / "driver.log") as screen:
            engine = Engine(sources, grid.resources, watch(screen) if watch else Unseen(), notes, tracked)
            try:
                trials = engine.searched(grid, plan.trials, run) if grid.protocol == "tuned" else plan.trials
                if not engine.interrupted:
                    refuse_strangers(run, grid, trials)
                    run.remember(grid, trials, plan.refused)
                    engine.run(trials, run)
            finally:
                engine.close()
        records = tuple(run.records())
        return Outcome(
            Plan(tuple(trials), plan.refused),
            records,
            tuple(run.failures()),
            engine.interrupted,
            time.perf_counter() - began,
            engine.slots,
            frozenset(record.id for record in records) - before,
        )


def missing(run: Run, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have no readable record, in order."""
    return [trial for trial in trials if run.record(trial) is None]


def refuse_strangers(run: Run, grid: Grid, trials: Sequence[Trial]) -> None:
    """Raise RunError when the folder's records would stand in one table with what they cannot be compared with."""
    records = run.records()
    differences = conflicts(records, trials)
    versions = {record.grid.get("version") for record in records if record.grid.get("name") == grid.name}
    if others := sorted(versions - {grid.version}):
        differences.append(f"version of grid {grid.name} was {', '.join(map(str, others))} and is now {grid.version}")
    if differences:
        listed = "\n  ".join(differences)
        raise RunError(
            f"{run.folder} holds results of other settings:\n  {listed}\n"
            "Results under different settings do not share a table: name another folder with OUT=…, or go back to "
            "the old settings."
        )


class Engine:
    """Ray, started when there is something to run, and what watches it."""

    def __init__(
        self,
        sources: Sources,
        wants: Resources,
        view: View,
        notes: Sequence[str] = (),
        track: Sequence[tune.Callback] = (),
    ):
        self.sources, self.wants, self.view, self.notes, self.track = sources, wants, view, list(notes), track
        self.slots, self.interrupted = 0, False
        self._open, self._bundle = ExitStack(), {}

    def close(self) -> None:
        """Stop ray, where it was started."""
        self._open.close()

    def searched(self, grid: Grid, trials: Sequence[Trial], run: Run) -> list[Trial]:
        """The trials with the settings that a search in `run`/search chooses; [] when it was interrupted."""
        from harness.search import tune

        folder = Run(run.folder / "search", warn=self.notes.append)
        folder.prepare()

        def execute(batch: list[Trial]) -> bool:
            self.run(batch, folder)
            return not self.interrupted

        return tune(trials, grid.search, folder, execute)

    def run(self, trials: Sequence[Trial], run: Run) -> None:
        """Submit trials until each has a record in `run`, has failed for good, or the user stops it all."""
        left = missing(run, trials)
        if not left:
            return
        self._start(left)
        view = self.view
        vars(_watch).update(vars(_Watch(view, run)))
        sources = replace(self.sources, out=run.folder.resolve())
        view.begin(len(trials), len(trials) - len(left), self.slots)
        while self.notes:
            view.note(self.notes.pop(0))
        try:
            prepare_images(left, sources, view.note)
            with stoppable():
                for _ in range(DRIVER_ATTEMPTS):
                    try:
                        _fit(left, sources, self.wants, self._bundle, self.track)
                    except RuntimeError:
                        if _watch.interrupted:
                            break
                        traceback.print_exc()
                        view.note(f"ray's controller stopped; what lacks a record is submitted again: {last_line()}")
                    left = [trial for trial in missing(run, trials) if trial.id not in _watch.gave_up]
                    if not left or _watch.interrupted:
                        break
        finally:
            self.interrupted = _watch.interrupted
            view.end(self.interrupted)

    def _start(self, trials: Sequence[Trial]) -> None:
        if self._bundle:
            return
        cpus, gpus = self._open.enter_context(cluster())
        share = self.wants.gpus_per_trial if self.wants.gpus_per_trial != "auto" else float(gpus > 0)
        cores = max(self.wants.cpus_per_trial, max(trial.training.threads for trial in trials))
        if cores > cpus or share > gpus:
            raise RunError(
                f"a trial wants {cores} processors and {share:g} GPUs; this machine has {cpus} and {gpus:g}"
            )
        self.slots = int(min(cpus // cores, gpus // share if share else cpus))
        self._bundle = {"CPU": cores, "GPU": share} if share else {"CPU": cores}


TRACKERS = {  # ray's own callbacks: module, class, arguments
    "tensorboard": ("ray.tune.logger", "TBXLoggerCallback", {}),
    "wandb": ("ray.air.integrations.wandb", "WandbLoggerCallback", {"project": "metrix-bench"}),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback", {"experiment_name": "metrix-bench"}),
}


def trackers(names: Sequence[str]) -> list[tune.Callback]:
    """The callbacks that show learning curves elsewhere while trials run; no number is read back from them.

    Raises ValueError for an unknown name, and for one whose package is not installed.
    """
    found = []
    for name in names:
        if name not in TRACKERS:
            raise ValueError(registry.unknown("tracker", name, TRACKERS))
        module, kind, arguments = TRACKERS[name]
        try:
            found.append(getattr(import_module(module), kind)(**arguments))
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"tracker {name} is not installed: pip install '.[trackers]' ({error})") from error
    return found


def _fit(
    trials: Sequence[Trial],
    sources: Sources,
    wants: Resources,
    bundle: dict[str, float],
    track: Sequence[tune.Callback] = (),
) -> None:
    specs = [{"trial": trial.model_dump_json(), "epochs": trial.schedule.epochs} for trial in trials]
    with nullcontext(sources.out / "trackers") if track else scratch("metrix-tune-") as folder:
        tune.Tuner(
            tune.with_resources(TrialActor, tune.PlacementGroupFactory([bundle])),
            param_space={
                "spec": tune.grid_search(specs),
                "sources": sources,
                "epoch_timeout_s": wants.epoch_timeout_s,
            },
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: _trial(trial).id),
            run_config=tune.RunConfig(
                name=f"grid-{time.time_ns()}",
                storage_path=str(folder),
                verbose=0,
                callbacks=[Messenger(), *track],
                failure_config=tune.FailureConfig(max_failures=wants.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


class TrialActor(tune.Trainable):
    """`harness.trial.steps`, one epoch a step. Everything a trial builds is built at its first step: Tune may set
    an actor up for a trial that another one runs."""

    def setup(self, config: dict) -> None:
        self._config, self._steps, self._last = config, None, None

    def reset_config(self, new_config: dict) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict:
        trial = Trial.model_validate_json(self._config["spec"]["trial"])
        run = Run(self._config["sources"].out)
        faulthandler.dump_traceback_later(self._config["epoch_timeout_s"], exit=True)
        try:
            if self._steps is None:
                self._steps = steps(trial, self._config["sources"])
            self._last = next(self._steps, None)
        except Exception as error:
            kind = kind_of(error)
            run.fail(trial, kind, f"{type(error).__name__}: {error}", traceback.format_exc())
            self._release()
            if kind in FINAL:
                return {"done": True, "failed": f"{error}"}
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
        if self._last is None:
            self._release()
            record = run.record(trial)
            return {"done": True, "score": record.test.get("R@1", math.nan), "seconds": record.cost.wall_s}
        epoch = self._last.curve[-1]
        return {"epoch": epoch.epoch, "loss": epoch.loss, "score": epoch.validation.get(FAIR.metric, math.nan)}

    def cleanup(self) -> None:
        self._release()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Trials keep their own checkpoints."""

    def load_checkpoint(self, checkpoint: dict | None) -> None:
        """Trials keep their own checkpoints."""

    def _release(self) -> None:
        self._steps = self._last = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


FINAL = ("diverged", "out of memory")  # the same again would end the same


def kind_of(error: Exception) -> str:
    """What a failure is called in the tables."""
    if isinstance(error, Diverged):
        return "diverged"
    return "out of memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else "error"


@dataclass
class _Watch:
    """What the callback reports to. Tune pickles callbacks, so this cannot be an attribute of one."""

    view: View = field(default_factory=Unseen)
    run: Run | None = None
    interrupted: bool = False
    gave_up: set[str] = field(default_factory=set)


_watch = _Watch()


class Messenger(tune.Callback):
    """Tells the view what Tune does. Runs in Tune's controller loop, so it does little."""

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        _watch.view.started(_trial(trial), "", trial.num_failures + 1)

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        if "epoch" in result:
            spec = trial.config["spec"]
            _watch.view.progress(_trial(trial).id, result["epoch"], spec["epochs"], result["loss"], result["score"])

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        result = trial.last_result or {}
        if "failed" in result:
            _give_up(trial, trial.num_failures + 1)
        elif result.get("done") and "seconds" in result:
            _watch.view.finished(_trial(trial).id, result["score"], result["seconds"])

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        failure = _failure(trial, trial.num_failures)
        _watch.view.failed(failure.id, failure.reason, failure.attempts, True)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        _give_up(trial, trial.num_failures)


def _give_up(trial: "tune.experiment.Trial", attempts: int) -> None:
    failure = _failure(trial, attempts)
    _watch.gave_up.add(failure.id)
    _watch.view.failed(failure.id, failure.reason, attempts, False)


def _trial(trial: "tune.experiment.Trial") -> Trial:
    return Trial.model_validate_json(trial.config["spec"]["trial"])


def _failure(trial: "tune.experiment.Trial", attempts: int) -> Failure:
    """What stopped a trial, with the number of tries; in its own words where its process left some."""
    spec, run = _trial(trial), _watch.run
    failure = run.failure(spec)
    if failure is None:
        text = _error_text(trial)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return run.fail(spec, "lost", f"its process was lost: {lines[-1] if lines else 'no message'}", text, attempts)
    return run.fail(spec, failure.kind, failure.reason, failure.traceback, attempts)


def _error_text(trial: "tune.experiment.Trial") -> str:
    path = trial.error_file
    return Path(path).read_text() if path and Path(path).exists() else ""


@contextmanager
def cluster() -> Iterator[tuple[int, float]]:
    """A ray of this machine alone: loopback, token, silent. Yields its processors and GPUs; gone on leaving."""
    with scratch("metrix-ray-") as folder:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            _temp_dir=str(folder),
        )
        try:
            have = ray.cluster_resources()
            yield int(have.get("CPU", 0)), have.get("GPU", 0.0)
        finally:
            ray.shutdown()


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end Tune's loop in order, once; a second one ends the process at once."""

    def stop(number, frame):
        if _watch.interrupted:
            os._exit(130)
        _watch.interrupted = True
        os.kill(os.getpid(), signal.SIGUSR1)  # what Tune listens to

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune listens
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Send everything this process prints to `log`; yields a stream on the real screen.

    Ray's threads print to the descriptors themselves, so the descriptors are what is redirected.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("a") as file, os.fdopen(os.dup(kept[0]), "w", buffering=1) as screen:
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


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A folder that is gone on leaving. In /tmp, because a socket's path may not exceed 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def last_line() -> str:
    """The last line of the exception in hand."""
    return traceback.format_exc().strip().splitlines()[-1]
