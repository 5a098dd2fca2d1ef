"""The run folder, or bucket: what it contains, and how it is read and written.

A run folder contains

    records/<trial id>.json      one for each finished trial, written atomically and never rewritten
    failures/<trial id>.json     why a trial stopped; removed when the trial succeeds later
    checkpoints/<trial id>/      of running trials
    per_query/<trial id>.npz     outcomes of all test queries, embeddings and image ids of the one test read
    plan.json                    the grids that were run here, and the levels without a form for their loss
    logs/<trial id>.log          what happened to a trial, attempt by attempt
    state.json                   what the driver is doing, renewed every few seconds while it runs
    memory.json                  the measured GPU memory of trials
    stop                         a request to the driver to stop
    ledger.jsonl  driver.log  leaderboard.{csv,md,tex,html}  scores.csv
    run.id  driver.json          the identity of this run, and the driver that holds it (see `patience`, `lease`)

A run in a bucket contains the same as objects; its ledger is one object for each read.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from harness.config import Trial
from harness.errors import first_few
from harness.grid import Grid
from harness.runs import files, lease, patience, process, storage
from harness.runs.errors import RunError
from harness.runs.lease import Lease
from harness.runs.record import SCHEMA, Failure, Record, Requested, Stored, now, write_json


class Run:
    """A run folder, or a bucket with a working copy in `folder`.

    Reading never fails on a damaged file: `warn` is called, the file is set aside, and its trial counts as missing.

    place     as the user named it
    address   names the same run to another process
    identity  the one that the folder must have (see `prepare`): writing waits while it is unavailable
    copy      the working copy of a bucket, if not in the cache
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
            self._storage.expect(identity)

    def __fspath__(self) -> str:
        return str(self.folder)

    def sub(self, name: str) -> "Run":
        """Return the run in the folder `name` of this one, such as the run of a search."""
        return Run(self._storage.sub(name).place, self._warn, copy=self.folder / name)

    @property
    def is_folder(self) -> bool:
        """Whether `folder` is the run itself, not a working copy."""
        return isinstance(self._storage, storage.Folder)

    def exists(self) -> bool:
        """Return whether a run has begun here or has records."""
        return self._storage.exists()

    def where(self, path: Path) -> str:
        """Return the path or the URL of a file of the run, for the user."""
        return self._storage.where(path)

    def pull(self, path: Path) -> bool:
        """Bring a file of `folder` up to date; return whether it exists."""
        return self._storage.pull(path)

    def pull_all(self, folder: Path, prefix: str = "") -> list[Path]:
        """Bring the files with this prefix up to date, many at once; return those that exist, by name."""
        return self._storage.pull_all(folder, prefix)

    def push(self, path: Path) -> None:
        """Store a file, or the files in a folder, that was written below `folder`."""
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
        """Return the path of a trial's test read, up to date; it may not exist."""
        path = self.per_query_path(trial_id)
        if not self.pull(path):
            path.unlink(missing_ok=True)  # a file that is only in the copy does not count
        return path

    def with_queries(self) -> set[str]:
        """Return the ids of the trials whose test read was kept."""
        names = self._storage.names(self.folder / "per_query")
        return {name.removesuffix(".npz") for name in names if name.endswith(".npz")}

    def pull_queries(self) -> None:
        """Bring all test reads up to date, many files at once."""
        self.pull_all(self.folder / "per_query")

    def pull_checkpoints(self, trial: Trial) -> None:
        """Bring the checkpoints of a trial up to date, whichever machine wrote them."""
        self.pull_all(self.checkpoints(trial))

    def push_checkpoints(self, trial: Trial) -> None:
        """Store the checkpoints of a trial, the one to continue from first."""
        for path in sorted(self.checkpoints(trial).glob("[!.]*"), key=lambda path: path.name != "last.safetensors"):
            self.push(path)

    def drop_checkpoints(self, trial: Trial) -> None:
        """Delete the stored checkpoints of a trial; the trial itself removes those in `folder`."""
        self._storage.drop(self.checkpoints(trial))

    def record(self, trial: Trial) -> Record | None:
        """Return the record of a trial; None while it has none."""
        path = self.record_path(trial)
        return self._read(path, Record) if self.pull(path) else None

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials without a readable record, in order; all records are brought up to date at once."""
        stored = set(self.pull_all(self.folder / "records"))
        paths = [(trial, self.record_path(trial)) for trial in trials]
        return [trial for trial, path in paths if path not in stored or self._read(path, Record) is None]

    def failure(self, trial: Trial) -> Failure | None:
        """Return why the trial stopped last; None if it has no failure."""
        path = self.failure_path(trial)
        return self._read(path, Failure) if self.pull(path) else None

    def records(self) -> list[Record]:
        """Return all records, by file name."""
        return list(self.each_record())

    def each_record(self) -> Iterator[Record]:
        """Yield one record after the other, by file name, for callers that do not keep them all."""
        return self._all("records", Record)

    def failures(self) -> list[Failure]:
        """Return the failures of trials that have no record, by file name."""
        done = self._storage.names(self.folder / "records")
        return [failure for failure in self._all("failures", Failure) if f"{failure.id}.json" not in done]

    def remember(self, grid: Grid, trials: Iterable[Trial], refused: Iterable[tuple[str, str, str, str]]) -> None:
        """Add a grid and its trials to plan.json, so that a report can show what is missing."""
        path = self.folder / "plan.json"
        try:
            before = self._requested()
        except ValidationError as error:
            before = Requested()
            self.set_aside(path, f"{path} cannot be read ({error.errors()[0]['msg']}) and is written again")
        grids = [*(other for other in before.grids if other != grid), grid]
        derived = {trial.id for one in grids for trial in one.trials()}
        further = {t.id: t for t in (*before.further, *trials) if t.id not in derived}
        rows = dict.fromkeys([*before.refused, *refused])
        self._write(path, Requested(grids=tuple(grids), further=tuple(further.values()), refused=tuple(rows)))

    def requested(self) -> Requested:
        """Return what was planned in this folder; empty if nothing was, or if plan.json cannot be read."""
        try:
            return self._requested()
        except ValidationError as error:
            path, why = self.where(self.folder / "plan.json"), error.errors()[0]["msg"]
            self._warn(
                f"{path} cannot be read ({why}), so missing trials are not shown; metrix-bench run writes it again"
            )
            return Requested()

    def _requested(self) -> Requested:
        path = self.folder / "plan.json"
        return Requested.model_validate_json(path.read_bytes()) if self.pull(path) else Requested()

    def declared(self) -> dict[str, dict[str, Any]]:
        """Return what the searches in this folder declared and chose, by dataset/backbone/arm; {} if there was none.

        Raises RunError if study.json cannot be read: a changed search could not be detected without it.
        """
        path = self.folder / "study.json"
        try:
            content = json.loads(path.read_bytes()) if self.pull(path) else {}
        except ValueError:
            content = None
        if not isinstance(content, dict) or not all(isinstance(study, dict) for study in content.values()):
            raise RunError(
                f"{self.where(path)}, which keeps what the searches declared, cannot be read: restore it from a "
                "copy, or move it away"
            )
        return content

    def finish(self, record: Record) -> None:
        """Write the record, which makes the trial done, and remove its failure."""
        self._write(self.record_path(record.trial), record)
        failure = self.failure_path(record.trial)
        patience.retry(lambda: failure.unlink(missing_ok=True), failure)
        self._storage.drop(failure)

    def keep_queries(self, trial: Trial, **arrays: np.ndarray) -> None:
        """Write the outcomes of all test queries atomically; called before the record is written."""
        path = self.per_query_path(trial.id)

        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType] (taken for allow_pickle)

        files.put(path, write)
        self.push(path)

    def fail(self, trial: Trial, kind: str, reason: str, traceback: str, attempts: int = 1) -> Failure:
        """Write and return the failure of a trial; the next run retries the trial."""
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
        """Return the ids of the trials that have a log."""
        return {name.removesuffix(".log") for name in self._storage.names(self.folder / "logs")}

    def log(self, trial_id: str) -> str:
        """Return the log of a trial; empty if it has none."""
        return (self._storage.read(f"logs/{trial_id}.log") or b"").decode(errors="replace")

    def begun(self) -> set[str]:
        """Return the ids of the trials that have a checkpoint to continue from."""
        return self._storage.folders_with("checkpoints", "last.safetensors")

    def push_if_there(self, path: Path) -> None:
        """Store a file that nothing depends on, such as a log. Raises RunError if the storage is unavailable."""
        if path.exists() and not self.is_folder:
            self._storage.write(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def write_state(self, content: dict[str, Any]) -> None:
        """Write what the driver is doing, without waiting for storage: the next state follows soon."""
        self._storage.write("state.json", json.dumps(content, indent=1).encode())

    def state(self) -> tuple[dict[str, Any], float] | None:
        """Return the last state of a driver and its age in seconds by the clock of the storage; None without one."""
        content = self._small("state.json", {"state", "driver", "updated"})
        return (content, self._storage.age_s("state.json")) if content else None

    def request_stop(self) -> None:
        """Ask the driver, wherever it runs, to end the run in order."""
        self._storage.write("stop", now().encode())

    def stop_requested(self) -> bool:
        """Return whether a stop was requested."""
        return self._storage.read("stop") is not None

    def clear_stop_request(self) -> None:
        """Withdraw a request to stop."""
        self._storage.delete("stop")

    def memory(self) -> dict[str, int]:
        """Return the measured GPU memory of trials in bytes (see `harness.launch.packing`)."""
        peaks = self._small("memory.json")
        return {key: peak for key, peak in peaks.items() if isinstance(peak, int)}

    def keep_memory(self, peaks: dict[str, int]) -> None:
        """Write the measured GPU memory of trials."""
        self._storage.write("memory.json", json.dumps(peaks, indent=1).encode())

    def _small(self, name: str, keys: Iterable[str] = ()) -> dict[str, Any]:
        """Return a small file that is renewed often; {} if it does not exist or, with a warning, cannot be read."""
        text = self._storage.read(name)
        try:
            content = json.loads(text) if text is not None else {}
        except ValueError:
            content = None
        if isinstance(content, dict) and (text is None or content.keys() >= set(keys)):
            return content
        self._warn(
            f"{self.where(self.folder / name)} cannot be read and is ignored; metrix-bench run writes it again"
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
            return model.model_validate_json(patience.retry(path.read_bytes, path))
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
        """Move a file or folder that cannot be used to set_aside/, and warn `why`.

        In a folder that is read-only it stays where it is.
        """
        aside = self.folder / "set_aside" / f"{path.name}.{time.time_ns()}"
        try:
            files.make_folder(aside.parent)
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
        """Make the folder and give it an identity. Raises RunError, with what to do, if it cannot be written."""
        self.require_writable()
        self.identity = self._storage.claim()
        self._storage.expect(self.identity)

    def require_writable(self) -> None:
        """Make the folder. Raises RunError, with what to do, if it cannot be written."""
        self._storage.prepare()

    def require_own(self, besides: tuple[str, ...] = ()) -> None:
        """Raise RunError if this place is neither a run nor empty. `besides`: prefixes of names that are allowed."""
        if self.exists():
            return
        others = sorted(
            name for name in self._storage.entries() if not name.startswith((".", "lost+found", *besides))
        )
        if others:
            raise RunError(
                f"{self.place} is not a run and contains other files ({first_few(others, 3)}): name a new or "
                "empty folder"
            )

    def problem_here(self, identity: str) -> str | None:
        """Return why this machine cannot work in the run folder of this identity; None if it can."""
        host, place = process.this_host(), self.place
        try:
            marker = self._storage.read(patience.MARKER)
            if marker is None and not self.folder.is_dir():
                return f"{place} does not exist on {host}; mount the share that the driver writes to at the same path"
            if marker is None or marker.decode() != identity:
                return (
                    f"{place} on {host} is another folder than the driver's ({patience.MARKER} "
                    f"{'is missing' if marker is None else 'differs'}); name a folder on a share that all machines "
                    "mount at the same path, or a bucket"
                )
            self._storage.probe()
        except OSError as error:
            return f"{place} cannot be used on {host}: {error.strerror or error}"
        except RunError as error:
            return f"{error} (on {host})"
        return None

    def remove_scratch(self, ended: bool = False, older_than_s: float = files.SCRATCH_AGE_S) -> int:
        """Remove scratch files of killed processes, while the run is held (see `files.remove_scratch`)."""
        return files.remove_scratch(self.folder, ended, older_than_s)

    @contextmanager
    def lock(self, host: str | None = None, every_s: float = lease.EVERY_S) -> Iterator[Lease]:
        """Hold the run for one driver, on this machine and others; yield the lease, which says whether it was `lost`.

        On one machine the kernel releases the lock when the process dies, however it dies. A driver of another
        machine that died is replaced when its lease has not been renewed for a while. `host` and `every_s`: see
        `lease.hold`. Raises RunError if another driver holds the run.
        """
        since = now()
        with (self.folder / "lock").open("a+", encoding="utf-8") as file:
            locked = host is None and lease.lock_file(file, self.place)
            if locked:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {os.uname().nodename} since {since}")
                file.flush()
            with lease.hold(self._storage, since, locked and self.is_folder, host, every_s) as held:
                self.identity = self._storage.claim()  # the one of the driver that prepared it first
                yield held
