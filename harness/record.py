"""Records: the truth about a run. A trial is done when its record exists; tables are built from records alone.

A run folder holds

    records/<trial id>.json      one a finished trial, written aside and renamed into place, never rewritten
    failures/<trial id>.json     what stopped a trial; removed when the trial succeeds later
    checkpoints/<trial id>/      of trials under way
    per_query/<trial id>.npz     outcomes of every test query, embeddings and image ids of the one test read
    plan.json                    the grids that ran here and the combinations that have no Metrix form
    ledger.jsonl  driver.log  leaderboard.{csv,md,tex,html}
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.config import Grid, Trial

SCHEMA = 1


class RunError(RuntimeError):
    """A run folder that cannot be used, with the reason and the way out in its message."""


class Stored(BaseModel):
    """A part of a record: read as it was written; keys of a later schema are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Epoch(Stored):
    """One epoch of training: mean loss over its steps, learning rate, validation scores in [0, 1], seconds.

    `spread`: std and effective rank of the validation embeddings (see `harness.spread`).
    """

    epoch: int
    loss: float
    lr: float
    validation: dict[str, float]
    train_s: float
    validation_s: float
    spread: dict[str, float] = {}


class Cost(Stored):
    """What the trial took. `train_s` is the time of training steps, without checkpoints, validation and test."""

    train_s: float = 0.0
    checkpoint_s: float = 0.0
    wall_s: float = 0.0
    images_per_s: float | None = None
    steps: int = 0
    images_seen: int = 0
    forward_passes_per_step: float = 0.0
    peak_gb: float = 0.0
    parameters: int = 0


class Data(Stored):
    """Which data: sizes and fingerprints of what was trained, selected and tested on.

    Of the `test_asked` images that are queries, `test_queries` have a positive and `test_excluded` have none.
    `distinct_classes`: in all splits together.
    """

    index_fingerprint: str
    pixel_fingerprint: str | None = None
    split_fingerprint: str
    images: dict[str, int]
    classes: dict[str, int]
    test_queries: int
    test_excluded: int
    test_asked: int | None = None
    distinct_classes: int | None = None


class Record(Stored):
    """A finished trial: its settings, curve, scores of the one test read, costs and provenance.

    `test_checkpoints`: how many checkpoints of this cell and seed had read the test by then, this one included.
    `folds`: of the mean over a seed's folds (see `harness.folds`), which is never stored, the records it is made of.
    """

    schema_version: Literal[1] = SCHEMA
    id: str
    trial: Trial
    arm: str
    level: str
    baseline: str
    grid: dict[str, Any]
    protocol: dict[str, Any]
    selected_epoch: int | None
    validation: dict[str, float]
    test: dict[str, float]
    best_test_epoch: dict[str, float] | None = None  # protocol paper only; chooses nothing
    test_spread: dict[str, float] = {}
    test_checkpoints: int = 1
    curve: tuple[Epoch, ...] = ()
    cost: Cost
    data: Data
    effective: dict[str, Any] = {}
    analysis: dict[str, Any] = {}
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    finished: str
    folds: tuple["Record", ...] = Field((), exclude=True)

    @property
    def parts(self) -> tuple["Record", ...]:
        """The records that are files: those of the folds, or this one."""
        return self.folds or (self,)


class Failure(Stored):
    """Why a trial has no record: kind (error, diverged, out of memory, timeout), one sentence, the traceback."""

    id: str
    trial: Trial
    arm: str
    kind: str
    reason: str
    traceback: str = ""
    attempts: int = 1
    finished: str


class Asked(Stored):
    """What a run folder was asked for: grids, trials that do not stand in a grid (such as compute-matched ones), and
    (dataset, backbone, arm, reason) of combinations that have no Metrix form."""

    grids: tuple[Grid, ...] = ()
    further: tuple[Trial, ...] = ()
    refused: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that should have a record some day; of a tuned grid, those with the settings it chose."""
        without = {row[:3] for row in self.refused}
        trials = {
            t.id: t
            for grid in self.grids
            for t in grid.trials()
            if t.cell not in without and (grid.protocol != "tuned" or t.arm.at == "floor")
        }
        return (*trials.values(), *(t for t in self.further if t.id not in trials))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside, flush to the disk, rename into place: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


class Run:
    """A run folder. Reading never fails on a broken file: it is named, set aside, and its trial counts as missing."""

    def __init__(self, folder: str | Path, warn: Callable[[str], None] = lambda sentence: None):
        self.folder = Path(folder)
        self._warn = warn

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def record_path(self, trial: Trial) -> Path:
        return self.folder / "records" / f"{trial.id}.json"

    def failure_path(self, trial: Trial) -> Path:
        return self.folder / "failures" / f"{trial.id}.json"

    def checkpoints(self, trial: Trial) -> Path:
        return self.folder / "checkpoints" / trial.id

    def per_query_path(self, trial_id: str) -> Path:
        return self.folder / "per_query" / f"{trial_id}.npz"

    def record(self, trial: Trial) -> Record | None:
        """The record of a trial, or None while it has none."""
        return self._read(self.record_path(trial), Record)

    def failure(self, trial: Trial) -> Failure | None:
        """Why the trial stopped last, or None where nothing says so."""
        return self._read(self.failure_path(trial), Failure)

    def records(self) -> list[Record]:
        """All records, by file name."""
        return list(self.each_record())

    def each_record(self) -> Iterator[Record]:
        """One record after the other, by file name: for those who keep less of each than all."""
        return self._all("records", Record)

    def failures(self) -> list[Failure]:
        """All failures of trials that have no record, by file name."""
        done = {path.name for path in (self.folder / "records").glob("*.json")}
        return [f for f in self._all("failures", Failure) if f"{f.id}.json" not in done]

    def remember(self, grid: Grid, trials: Iterable[Trial], refused: Iterable[Sequence[str]]) -> None:
        """Keep what was asked for, so that a report can show what is missing. Several grids add up."""
        before = self.asked()
        grids = [*(other for other in before.grids if other != grid), grid]
        derived = {trial.id for one in grids for trial in one.trials()}
        further = {t.id: t for t in (*before.further, *trials) if t.id not in derived}
        rows = dict.fromkeys([*before.refused, *map(tuple, refused)])
        asked = Asked(grids=grids, further=tuple(further.values()), refused=tuple(rows))
        write_json(self.folder / "plan.json", asked.model_dump(mode="json"))

    def asked(self) -> "Asked":
        """What the grids that ran in this folder asked for; empty where none did."""
        path = self.folder / "plan.json"
        return Asked.model_validate_json(path.read_bytes()) if path.exists() else Asked()

    def finish(self, record: Record) -> None:
        """Write the record: from here on the trial is done."""
        write_json(self.record_path(record.trial), record.model_dump(mode="json"))
        self.failure_path(record.trial).unlink(missing_ok=True)

    def keep_queries(self, trial: Trial, **arrays: np.ndarray) -> None:
        """Keep what the test read gave, query by query, beside the record; written before it, atomically."""
        path = self.per_query_path(trial.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                np.savez_compressed(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def fail(self, trial: Trial, kind: str, reason: str, traceback: str, attempts: int = 1) -> Failure:
        """Write why the trial stopped, and return it; the next run tries it again."""
        failure = Failure(
            id=trial.id,
            trial=trial,
            arm=trial.arm.label,
            kind=kind,
            reason=reason,
            traceback=traceback,
            attempts=attempts,
            finished=now(),
        )
        write_json(self.failure_path(trial), failure.model_dump(mode="json"))
        return failure

    def _all(self, kind: str, model: type[Stored]) -> Iterator[Any]:
        for path in sorted((self.folder / kind).glob("*.json")):
            if (read := self._read(path, model)) is not None:
                yield read

    def _read(self, path: Path, model: type[Stored]) -> Any | None:
        try:
            return model.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            self.set_aside(path, f"{path} cannot be read ({error.errors()[0]['msg']}); its trial runs again")
            return None

    def set_aside(self, path: Path, why: str) -> None:
        """Move a file or folder that cannot be used out of the way, keep it, and say so."""
        aside = self.folder / "set_aside" / f"{path.name}.{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)
        self._warn(f"{why} (kept as {aside})")

    def prepare(self) -> None:
        """Make the folder and make sure that it can be written; RunError says who must do what otherwise."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe.{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write in {self.folder}: {error.strerror}; choose another folder with OUT=…"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one driver. The kernel lets go when the process dies, however it dies."""
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunError(
                    f"{self.folder} is in use by {holder}; wait for it, or choose another folder with OUT=…"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename} since {now()}")
            file.flush()
            yield


def conflicts(records: Iterable[Record], trials: Iterable[Trial]) -> list[str]:
    """Why these trials may not join these records in one folder: one sentence for each difference (FAIR-08).

    Two results of one cell, seed and fold, or two values of a factor that a table must share, would make a table that
    compares unlike things.
    """
    planned = {(*trial.cell, trial.seed, trial.fold): trial for trial in trials}
    tables = {trial.cell[:2]: trial for trial in planned.values()}
    differences: dict[str, int] = {}
    for record in records:
        trial = record.trial
        twin, other = planned.get((*trial.cell, trial.seed, trial.fold)), tables.get(trial.cell[:2])
        if other is not None and other.shared != trial.shared:
            old, new = trial.shared, other.shared
            pairs = [
                (key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)
            ]
        elif twin is not None and twin.id != trial.id:
            old, new = trial.model_dump(mode="json"), twin.model_dump(mode="json")
            pairs = [(f"{trial.arm.label} {k}", old[k], new[k]) for k in ("arm", "training") if old[k] != new[k]]
        else:
            continue
        for key, before, after in pairs:
            sentence = f"{key} was {before} and is now {after}"
            differences[sentence] = differences.get(sentence, 0) + 1
    return [f"{sentence} ({n} record{'s' * (n > 1)})" for sentence, n in differences.items()]


def now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
