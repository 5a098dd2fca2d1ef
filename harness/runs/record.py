"""Records: the truth about a run. A trial is done when its record exists; tables are built from records alone.

A run folder holds

    records/<trial id>.json      one a finished trial, written aside and renamed into place, never rewritten
    failures/<trial id>.json     what stopped a trial; removed when the trial succeeds later
    checkpoints/<trial id>/      of trials under way
    per_query/<trial id>.npz     outcomes of every test query, embeddings and image ids of the one test read
    plan.json                    the grids that ran here and the combinations that have no Metrix form
    logs/<trial id>.log          what happened in a trial, attempt by attempt
    state.json                   what the driver is doing, renewed every few seconds while it runs
    memory.json                  GPU memory that trials were measured to need
    stop                         somebody asks the driver to stop
    ledger.jsonl  driver.log  leaderboard.{csv,md,tex,html}
    run.id  driver.json          which run folder this is, and which driver holds it (see `storage`, `lease`)

A run in a bucket holds the same, as objects, and the ledger as one object a read (`harness.runs.storage.Bucket`).
"""

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness.config import Trial
from harness.data.datasets import PassedOver
from harness.errors import some
from harness.grid import Grid
from harness.runs import lease, storage
from harness.runs.lease import Lease
from harness.runs.storage import RunError

SCHEMA = 1
LAST = "MAP@R"  # the score that every evaluation has


def least_recall(scores: Iterable[str]) -> str | None:
    """The name R@K of the least K among the names of scores; None where there is none."""
    return min((name for name in scores if name.startswith("R@")), key=lambda name: int(name[2:]), default=None)


def _file_name(text: str) -> str:
    """An id becomes a file name: one from a file that others wrote must not lead out of its folder."""
    if not text or text.startswith(".") or any(sign in text for sign in "/\\\0"):
        raise ValueError(f"{text!r} is no id: it leads out of the run folder")
    return text


Id = Annotated[str, AfterValidator(_file_name)]


class Stored(BaseModel):
    """A part of a record: read as it was written; keys of a later schema are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Epoch(Stored):
    """One epoch of training: mean loss over its steps, learning rate, validation scores in [0, 1], seconds.

    `spread`: std and effective rank of the validation embeddings (see `evaluation.spread`). Epoch 0 is the network
    before its first step: it has no loss, and is never chosen. Curves of older records begin at epoch 1.
    """

    epoch: int
    loss: float | None
    lr: float
    validation: dict[str, float]
    train_s: float
    validation_s: float
    spread: dict[str, float] = {}


class Cost(Stored):
    """What the trial took, over all attempts.

    `train_s` is the time of training steps, without checkpoints, validation and test. `wall_s` is the time from start
    to record. Of an attempt that was killed it counts the part up to its last checkpoint: what came after left no
    trace. `attempt_s`: what of it the last attempt took. `peak_gb` is that of this process, of rank 0 where several
    share the batch: memory allocated on its GPU, or resident memory on a processor; None where the system does not
    say (see `harness.training.memory`).
    """

    train_s: float = 0.0
    checkpoint_s: float = 0.0
    wall_s: float = 0.0
    attempt_s: float | None = None
    images_per_s: float | None = None
    steps: int = 0
    images_seen: int = 0
    forward_passes_per_step: float = 0.0
    peak_gb: float | None = None
    parameters: int = 0


class Data(Stored):
    """Which data: sizes and fingerprints of what was trained, selected and tested on.

    Of the `test_asked` images that are queries, `test_queries` have a positive and `test_excluded` have none.
    `distinct_classes`: in all splits together. `content_fingerprint` tells the pixels from others under the same
    names, as far as they were read for this trial; `source_stamp` is the dataset's `stamp`. `passed_over`: what lay
    among the images and is no part of the data.
    """

    index_fingerprint: str
    pixel_fingerprint: str | None = None
    content_fingerprint: str | None = None
    source_stamp: str | None = None
    split_fingerprint: str
    images: dict[str, int]
    classes: dict[str, int]
    test_queries: int
    test_excluded: int
    test_asked: int | None = None
    distinct_classes: int | None = None
    passed_over: tuple[PassedOver, ...] = ()


class Record(Stored):
    """A finished trial: its settings, curve, scores of the one test read, costs and provenance.

    `test_checkpoints`: how many checkpoints of this cell and seed had read the test by then, this one included.
    `folds`: of the mean over a seed's folds (see `folds`), which is never stored, the records it is made of.
    """

    schema_version: Literal[1] = SCHEMA
    id: Id
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
    def weights(self) -> str | None:
        """What the network began with: timm's tag of published weights, or name and digest of a file of weights.

        None for random initial weights, and where nothing was loaded. Older records name timm's tag whatever was
        loaded; their settings and digest say better.
        """
        chosen, origin = self.trial.backbone.pretrained, self.provenance
        if chosen is True:
            return origin.get("weights")
        digest = origin.get("initial_weights")
        return f"{Path(chosen).name} (sha256 {digest[:12]})" if chosen and digest else None

    @property
    def headline(self) -> tuple[str, float]:
        """The one score that a finished trial is named with: R@K on test of the least K that it scored, or MAP@R.

        Validation MAP@R, under that name, where the test was not read, as in a search.
        """
        if not self.test:
            return f"validation {LAST}", self.validation.get(LAST, math.nan)
        name = least_recall(self.test) or LAST
        return name, self.test.get(name, math.nan)

    @property
    def parts(self) -> tuple["Record", ...]:
        """The records that are files: those of the folds, or this one."""
        return self.folds or (self,)


class Failure(Stored):
    """Why a trial has no record: kind, one sentence, the traceback.

    Kinds: error, refused (its settings or data cannot work, so it is not tried again), diverged, out of memory,
    timeout (it hung), lost (its process died), storage (full or away long).
    """

    id: Id
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
    text = json.dumps(content, indent=1, allow_nan=False)
    storage.put(path, lambda aside: aside.write_text(text, encoding="utf-8"))


class Run:
    """A run folder, or a bucket with a working copy in `folder`. Reading never fails on a broken file: it is named,
    set aside, and its trial counts as missing.

    `place` is what the user named, `address` what names the same run to another process. `identity` says which run
    folder this must be (see `prepare`): writing then waits while the folder is away. `copy`: where the working copy
    of a bucket lies, if not in the cache.
    """

    def __init__(
        self,
        place: str | Path,
        warn: Callable[[str], None] = lambda sentence: None,
        identity: str | None = None,
        copy: Path | None = None,
    ):
        self._storage, self._warn = storage.of(place, copy), warn
        self.folder, self.place, self.address = self._storage.folder, self._storage.place, self._storage.address
        self.identity = identity
        if identity is not None:
            self._storage.recognise(identity)

    def __fspath__(self) -> str:
        return str(self.folder)

    def sub(self, name: str) -> "Run":
        """The run in the folder `name` of this one, such as that of a search."""
        return Run(self._storage.sub(name).place, self._warn, copy=self.folder / name)

    @property
    def is_folder(self) -> bool:
        """Whether the run is what lies in `folder`, and that is no copy."""
        return isinstance(self._storage, storage.Folder)

    def exists(self) -> bool:
        """Whether this is a run: one that has begun, or has records."""
        return self._storage.exists()

    def where(self, path: Path) -> str:
        """A file of the run as the user finds it: its path, or its URL."""
        return self._storage.where(path)

    def pull(self, path: Path) -> bool:
        """Bring a file of `folder` up to date; whether there is one."""
        return self._storage.pull(path)

    def pull_all(self, folder: Path, prefix: str = "") -> list[Path]:
        """Bring the files in a folder of the run whose names begin with `prefix` up to date, many at once; those that
        there are, by name."""
        return self._storage.pull_all(folder, prefix)

    def push(self, path: Path) -> None:
        """Store a file of `folder`, or the files in a folder, that was written there."""
        self._storage.push(path)

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

    def per_query(self, trial_id: str) -> Path:
        """The file of a trial's test read, up to date; it may not exist."""
        path = self.per_query_path(trial_id)
        if not self.pull(path):
            path.unlink(missing_ok=True)  # in the copy alone it does not count
        return path

    def with_queries(self) -> set[str]:
        """The ids of the trials whose test read was kept."""
        names = self._storage.names(self.folder / "per_query")
        return {name.removesuffix(".npz") for name in names if name.endswith(".npz")}

    def pull_queries(self) -> None:
        """Bring what was kept of all test reads up to date, many files at once."""
        self.pull_all(self.folder / "per_query")

    def pull_checkpoints(self, trial: Trial) -> None:
        """Bring the checkpoints of a trial up to date, wherever it ran before."""
        self.pull_all(self.checkpoints(trial))

    def push_checkpoints(self, trial: Trial) -> None:
        """Store the checkpoints of a trial; what it would continue from comes first."""
        for path in sorted(self.checkpoints(trial).glob("[!.]*"), key=lambda path: path.name != "last.safetensors"):
            self.push(path)

    def drop_checkpoints(self, trial: Trial) -> None:
        """Delete the stored checkpoints of a trial; those in `folder` are its own to remove."""
        self._storage.drop(self.checkpoints(trial))

    def record(self, trial: Trial) -> Record | None:
        """The record of a trial, or None while it has none."""
        path = self.record_path(trial)
        return self._read(path, Record) if self.pull(path) else None

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """The trials that have no readable record, in order; all records are brought up to date at once."""
        there = set(self.pull_all(self.folder / "records"))
        paths = [(trial, self.record_path(trial)) for trial in trials]
        return [trial for trial, path in paths if path not in there or self._read(path, Record) is None]

    def failure(self, trial: Trial) -> Failure | None:
        """Why the trial stopped last, or None where nothing says so."""
        path = self.failure_path(trial)
        return self._read(path, Failure) if self.pull(path) else None

    def records(self) -> list[Record]:
        """All records, by file name."""
        return list(self.each_record())

    def each_record(self) -> Iterator[Record]:
        """One record after the other, by file name: for those who keep less of each than all."""
        return self._all("records", Record)

    def failures(self) -> list[Failure]:
        """All failures of trials that have no record, by file name."""
        done = self._storage.names(self.folder / "records")
        return [f for f in self._all("failures", Failure) if f"{f.id}.json" not in done]

    def remember(self, grid: Grid, trials: Iterable[Trial], refused: Iterable[Sequence[str]]) -> None:
        """Keep what was asked for, so that a report can show what is missing. Several grids add up."""
        path = self.folder / "plan.json"
        try:
            before = self._asked()
        except ValidationError as error:
            before = Asked()
            self.set_aside(path, f"{path} cannot be read ({error.errors()[0]['msg']}) and is written anew")
        grids = [*(other for other in before.grids if other != grid), grid]
        derived = {trial.id for one in grids for trial in one.trials()}
        further = {t.id: t for t in (*before.further, *trials) if t.id not in derived}
        rows = dict.fromkeys([*before.refused, *map(tuple, refused)])
        asked = Asked(grids=grids, further=tuple(further.values()), refused=tuple(rows))
        self._write(path, asked)

    def asked(self) -> "Asked":
        """What the grids that ran in this folder asked for; empty where none did, or where that cannot be read."""
        try:
            return self._asked()
        except ValidationError as error:
            path, why = self.where(self.folder / "plan.json"), error.errors()[0]["msg"]
            self._warn(
                f"{path} cannot be read ({why}), so what is missing is not shown; metrix-bench run writes it anew"
            )
            return Asked()

    def _asked(self) -> "Asked":
        path = self.folder / "plan.json"
        return Asked.model_validate_json(path.read_bytes()) if self.pull(path) else Asked()

    def declared(self) -> dict[str, dict[str, Any]]:
        """What the searches in this folder declared and chose, by dataset/backbone/arm; {} where there was none.

        Raises RunError where it cannot be read: without it nobody knows whether a search was changed.
        """
        path = self.folder / "study.json"
        try:
            found = json.loads(path.read_bytes()) if self.pull(path) else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(about, dict) for about in found.values()):
            raise RunError(
                f"{self.where(path)} cannot be read, which says what the searches declared: bring a copy of it back, "
                "or move it away"
            )
        return found

    def finish(self, record: Record) -> None:
        """Write the record: from here on the trial is done."""
        self._write(self.record_path(record.trial), record)
        failure = self.failure_path(record.trial)
        storage.patiently(lambda: failure.unlink(missing_ok=True), failure)
        self._storage.drop(failure)

    def keep_queries(self, trial: Trial, **arrays: np.ndarray) -> None:
        """Keep what the test read gave, query by query, beside the record; written before it, atomically."""
        path = self.per_query_path(trial.id)

        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez_compressed(file, **arrays)

        storage.put(path, write)
        self.push(path)

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
        self._write(self.failure_path(trial), failure)
        return failure

    def log_path(self, trial_id: str) -> Path:
        return self.folder / "logs" / f"{trial_id}.log"

    def logged(self) -> set[str]:
        """The ids of the trials that have a log."""
        return {name.removesuffix(".log") for name in self._storage.names(self.folder / "logs")}

    def log(self, trial_id: str) -> str:
        """What happened in a trial, as far as it was written."""
        return (self._storage.read(f"logs/{trial_id}.log") or b"").decode(errors="replace")

    def begun(self) -> set[str]:
        """The ids of the trials that have a checkpoint to continue from."""
        return self._storage.folders_with("checkpoints", "last.safetensors")

    def push_if_there(self, path: Path) -> None:
        """Store a file that nothing depends on, such as a log, in one attempt; RunError where the storage is away."""
        if path.exists() and not self.is_folder:
            self._storage.write(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def write_state(self, content: dict[str, Any]) -> None:
        """Say what the driver is doing, in one attempt: where the storage is away, it is said again soon."""
        self._storage.write("state.json", json.dumps(content, indent=1).encode())

    def state(self) -> tuple[dict[str, Any], float] | None:
        """What the driver said last, and how many seconds ago by the storage's own clock; None where none has."""
        content = self._small("state.json", {"state", "driver", "updated"})
        return (content, self._storage.age_s("state.json")) if content else None

    def ask_to_stop(self) -> None:
        """Ask the driver, wherever it runs, to end the run cleanly."""
        self._storage.write("stop", now().encode())

    def asked_to_stop(self) -> bool:
        """Whether somebody asked the driver to stop."""
        return self._storage.read("stop") is not None

    def forget_stop(self) -> None:
        """Nobody asks any more."""
        self._storage.delete("stop")

    def memory(self) -> dict[str, int]:
        """Bytes of GPU memory that trials were measured to need (see `harness.launch.packing`)."""
        known = self._small("memory.json")
        return {key: peak for key, peak in known.items() if isinstance(peak, int)}

    def keep_memory(self, peaks: dict[str, int]) -> None:
        """Keep what trials were measured to need."""
        self._storage.write("memory.json", json.dumps(peaks, indent=1).encode())

    def _small(self, name: str, keys: Iterable[str] = ()) -> dict[str, Any]:
        """A small file that is renewed often; {} where there is none, or where it cannot be read, which is said."""
        text = self._storage.read(name)
        try:
            content = json.loads(text) if text is not None else {}
        except ValueError:
            content = None
        if isinstance(content, dict) and (text is None or content.keys() >= set(keys)):
            return content
        self._warn(
            f"{self.where(self.folder / name)} cannot be read; it is passed over, and metrix-bench run writes it anew"
        )
        return {}

    def _write(self, path: Path, content: Stored) -> None:
        write_json(path, content.model_dump(mode="json"))
        self.push(path)

    def _all(self, kind: str, model: type[Stored]) -> Iterator[Any]:
        for path in self.pull_all(self.folder / kind):
            if path.suffix == ".json" and (read := self._read(path, model)) is not None:
                yield read

    def _read(self, path: Path, model: type[Stored]) -> Any | None:
        try:
            return model.model_validate_json(storage.patiently(path.read_bytes, path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("schema_version",) and isinstance(first["input"], int) and first["input"] > SCHEMA:
                raise RunError(
                    f"{self.where(path)} was written by a later version of metrix-bench (schema {first['input']}; "
                    f"this one reads {SCHEMA}): install that version, or name another folder"
                ) from None
            self.set_aside(path, f"{path} cannot be read ({first['msg']}); its trial runs again")
            return None

    def set_aside(self, path: Path, why: str) -> None:
        """Move a file or folder that cannot be used out of the way, keep it, and say so.

        In a folder that only lets itself be read, it stays where it is.
        """
        aside = self.folder / "set_aside" / f"{path.name}.{time.time_ns()}"
        try:
            storage.make(aside.parent)
            path.replace(aside)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._warn(f"{why} (it stays where it is: {error.strerror})")
            return
        self.push(aside)
        self._storage.drop(path)
        self._warn(f"{why} (kept as {self.where(aside)})")

    def prepare(self) -> None:
        """Make the folder, make sure that it can be written, and give it an identity; RunError says who must do what
        otherwise."""
        self.require_writable()
        self.identity = self._storage.claim()
        self._storage.recognise(self.identity)

    def require_writable(self) -> None:
        """Make the folder, and sure that it can be written; RunError says who must do what otherwise."""
        self._storage.prepare()

    def require_own(self, besides: tuple[str, ...] = ()) -> None:
        """Raise RunError where this place is neither a run nor empty; `besides` begin names that may be there."""
        if self.exists():
            return
        strange = sorted(name for name in self._storage.holds() if not name.startswith((".", "lost+found", *besides)))
        if strange:
            raise RunError(
                f"{self.place} is not a run and holds other things ({some(strange, 3)}): name a new or an empty "
                "folder"
            )

    def seen_here(self, identity: str) -> str | None:
        """What keeps this machine from working in the run folder of this identity; None where nothing does."""
        host, place = storage.this_host(), self.place
        try:
            found = self._storage.read(storage.MARKER)
            if found is None and not self.folder.is_dir():
                return f"{place} is not there on {host}; mount the share that the driver writes to, at the same place"
            if found is None or found.decode() != identity:
                return (
                    f"{place} on {host} is another folder than the driver's ({storage.MARKER} "
                    f"{'is missing' if found is None else 'differs'}); name a folder on a share that all machines "
                    "mount at the same place, or a bucket"
                )
            self._storage.probe()
        except OSError as error:
            return f"{place} cannot be used on {host}: {error.strerror or error}"
        except RunError as error:
            return f"{error} (on {host})"
        return None

    def sweep(self, ended: bool = False, older_than_s: float = storage.SCRATCH_AGE_S) -> int:
        """Remove scratch files of dead writers, and how many; call it while the run is held (see `storage.sweep`)."""
        return storage.sweep(self.folder, ended, older_than_s)

    @contextmanager
    def lock(self, host: str | None = None, every_s: float = lease.EVERY_S) -> Iterator[Lease]:
        """Hold the run for one driver, on this machine and others; what is yielded says whether it was `lost`.

        On one machine the kernel lets go when the process dies, however it dies; a driver of another machine that
        died is taken over when its lease has not been renewed for a while. `host` and `every_s`: see `lease.hold`.
        """
        since = now()
        with (self.folder / "lock").open("a+", encoding="utf-8") as file:
            flocked = host is None and self._flocked(file)
            if flocked:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {os.uname().nodename} since {since}")
                file.flush()
            with lease.hold(self._storage, since, flocked and self.is_folder, host, every_s) as held:
                self.identity = self._storage.claim()  # that of whoever prepared it first
                yield held

    def _flocked(self, file: TextIO) -> bool:
        """Whether this process has the kernel's lock; False on storage that knows none. RunError if another has."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunError(
                f"{self.place} is in use by {holder}; wait for it, or choose another folder with --out "
                "(OUT=… of make)"
            ) from None
        return True


def conflicts(records: Iterable[Record], trials: Iterable[Trial]) -> list[str]:
    """Why these trials may not join these records in one folder: one sentence for each difference (FAIR-08).

    Two results of one cell, seed and fold, or two values of a factor that a table must share, would make a table that
    compares unlike things.
    """
    found = _differences((record.trial for record in records), trials)
    return [f"{sentence} ({n} record{'s' * (n > 1)})" for sentence, n in found.items()]


def differences(before: Iterable[Trial], trials: Iterable[Trial]) -> list[str]:
    """The same for trials that have no records: what they were and are now."""
    return list(_differences(before, trials))


def _differences(before: Iterable[Trial], trials: Iterable[Trial]) -> dict[str, int]:
    """Each difference, and how often it occurs."""
    planned = {(*trial.cell, trial.seed, trial.fold): trial for trial in trials}
    tables = {trial.cell[:2]: trial for trial in planned.values()}
    found: dict[str, int] = {}
    for trial in before:
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
        for key, was, now_is in pairs:
            sentence = f"{key} was {was} and is now {now_is}"
            found[sentence] = found.get(sentence, 0) + 1
    return found


def now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
