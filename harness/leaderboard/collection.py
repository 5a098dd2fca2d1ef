"""The contents of one or more run folders as one filtered set, with its conflicts named."""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config import Trial
from harness.evaluation.editions import edition_of
from harness.fairness import rules
from harness.leaderboard import filters, published
from harness.leaderboard.board import Board
from harness.leaderboard.compose import board_of
from harness.leaderboard.frame import SHOWN
from harness.leaderboard.scores import FIRST_METRICS
from harness.runs import outcomes
from harness.runs.errors import RunError
from harness.runs.record import Failure, Record
from harness.runs.run import Run

MANY = 2000  # above this number of records, queries are not read for intervals over test classes: it takes minutes


@dataclass(frozen=True)
class Collection:
    """Records, failures, planned trials and refused combinations of several runs.

    run_by_id  the run of each record, by record id
    """

    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    planned: tuple[Trial, ...]
    refused: tuple[tuple[Trial, str], ...]
    run_by_id: dict[str, Run]
    notes: tuple[str, ...] = ()

    def outcomes(self, id: str, metrics: Sequence[str]) -> outcomes.ByClass | None:
        """Return the outcomes of the test queries of a record, by class; None if they were not saved.

        Raises RunError if they cannot be read.
        """
        if id not in self.with_queries:
            return None
        return outcomes.by_class(self.run_by_id[id].per_query_path(id), tuple(metrics))

    @cached_property
    def by_id(self) -> dict[str, Record]:
        return {record.id: record for record in self.records}

    @cached_property
    def with_queries(self) -> frozenset[str]:
        """The ids of the records whose test queries were saved."""
        ids = {run: run.with_queries() for run in self._runs()}
        return frozenset(record for record, run in self.run_by_id.items() if record in ids[run])

    def pull_queries(self) -> None:
        """Download the saved test queries of runs that are in a bucket."""
        for run in self._runs():
            run.pull_queries()

    def _runs(self) -> list[Run]:
        return list(dict.fromkeys(self.run_by_id.values()))

    def board(self, metrics: Sequence[str] = ()) -> Board:
        """Return the leaderboard of the whole collection, with the findings of the fairness rules."""
        many = len(self.records) > MANY
        if not many:
            self.pull_queries()
        read_metrics = metrics or FIRST_METRICS[:SHOWN]
        damaged: list[str] = []

        def by_class(id: str) -> outcomes.ByClass | None:
            try:
                return self.outcomes(id, read_metrics)
            except RunError as error:
                damaged.append(f"{error}. Its row has no interval over test classes.")
                return None

        with _many_objects():
            all_findings = rules.over_records(self.records, self.failures, self.planned)
            board = board_of(
                self.records,
                self.failures,
                self.planned,
                self.refused,
                outcomes=None if many else by_class,
                published=published.load(),
                metrics=metrics,
                notes=[*self.notes, *(finding.sentence for finding in all_findings if not finding.records)],
                findings=all_findings,
            )
        if many:
            gc.freeze()
        return replace(board, notes=(*board.notes, *dict.fromkeys(damaged), *([_NOTE_ON_MANY] if many else [])))


_NOTE_ON_MANY = (
    f"Intervals over test classes are left out above {MANY:,} records; a report of fewer records has them, "
    "such as one with --only dataset=…."
)


def collect(
    folders: Sequence[str | Path],
    only: Mapping[str, Sequence[str]] | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Collection:
    """Return the contents of these run folders that pass the filters `only` ({"dataset": ["cub200"]}, see `filters`).

    A trial in two folders counts once. If its scores differ, those of the first folder are used and a note is added.
    Raises RunError for a folder that is not a run folder, ValueError for a filter that nothing passes.
    """
    runs = [Run(folder, warn) for folder in folders]
    for run in runs:
        if not run.exists():
            raise RunError(f"{run.place} is not a run folder: it has no records/")
    names = dict(zip(runs, _names([run.address for run in runs]), strict=True))
    records: dict[str, Record] = {}
    run_by_id: dict[str, Run] = {}
    notes: list[str] = []
    with _many_objects():
        for run in runs:
            for record in map(_lean, run.each_record()):
                first = records.setdefault(record.id, record)
                if first is record:
                    run_by_id[record.id] = run
                elif first.test != record.test:
                    notes.append(_conflict(first, record, names[run_by_id[record.id]], names[run]))
    if len(records) > MANY:
        gc.freeze()  # what was read stays until the process ends: the collector need not walk it
    requests = [run.requested() for run in runs]
    whole = Collection(
        records=tuple(records.values()),
        failures=tuple(failure for run in runs for failure in run.failures()),
        planned=tuple({trial.id: trial for request in requests for trial in request.trials}.values()),
        refused=tuple(_once(pair for request in requests for pair in request.without_form)),
        run_by_id=run_by_id,
        notes=(*notes, *_protocols(records.values())),
    )
    return _narrowed(whole, only) if only else whole


def _narrowed(whole: Collection, only: Mapping[str, Sequence[str]]) -> Collection:
    """Return the part of a collection that passes the filters on records."""
    trials = [*(r.trial for r in whole.records), *(f.trial for f in whole.failures), *whole.planned]
    passes = filters.of_trials(only, trials)
    kept = {_settings(trial) for trial in trials if passes(trial)} if whole.refused else set()
    return replace(
        whole,
        records=tuple(record for record in whole.records if passes(record.trial)),
        failures=tuple(failure for failure in whole.failures if passes(failure.trial)),
        planned=tuple(trial for trial in whole.planned if passes(trial)),
        refused=tuple((trial, reason) for trial, reason in whole.refused if _settings(trial) in kept),
    )


def _settings(trial: Trial) -> str:
    """Return what trials of one table share, as text."""
    return json.dumps(trial.shared, sort_keys=True)


def _once(pairs: Iterable[tuple[Trial, str]]) -> Iterable[tuple[Trial, str]]:
    """Return each refused arm once for each table that it may be in."""
    return {(trial.arm.label, _settings(trial)): (trial, reason) for trial, reason in pairs}.values()


@contextmanager
def _many_objects() -> Iterator[None]:
    """Disable the garbage collector, which would walk all objects again and again: a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch as reports read it. It takes a third of the memory: a large collection has hundreds of thousands."""

    epoch: int
    loss: float | None
    lr: float
    validation: dict[str, float]
    train_s: float
    validation_s: float
    spread: dict[str, float]


_NO_SPREAD: dict[str, float] = {}


def _lean(record: Record) -> Record:
    """Return the record with its curve as points."""
    curve = tuple(
        Point(e.epoch, e.loss, e.lr, e.validation, e.train_s, e.validation_s, e.spread or _NO_SPREAD)
        for e in record.curve
    )
    return record.model_copy(update={"curve": curve})


def _names(folders: Sequence[str]) -> list[str]:
    """Return the last part of each path or URL, or more parts if names would collide."""
    parts = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(folders, 1)]


def _conflict(first: Record, second: Record, where: str, other: str) -> str:
    apart = next(m for m in (*first.test, *second.test) if first.test.get(m) != second.test.get(m))
    scores = " and ".join(f"{r.test[apart]:.4f}" if apart in r.test else "none" for r in (first, second))
    return f"FAIR-08 {first.id} differs between {where} and {other}: {apart} {scores}; that of {where} is used."


def _protocols(records: Iterable[Record]) -> Iterator[str]:
    """Yield a note if there are several protocols or evaluators, which no table mixes."""
    records = [record for record in records if record.test]
    protocols = sorted({f"{r.protocol.get('name')} version {r.protocol.get('version')}" for r in records})
    evaluators = {edition_of(r.provenance.get("evaluator")) for r in records}
    if len(protocols) > 1:
        yield f"FAIR-25 records of several protocols ({', '.join(protocols)}): each protocol has its own tables."
    if len(evaluators) > 1:
        yield f"FAIR-25 records of {len(evaluators)} versions of the evaluator: each version has its own tables."


def trace(collection: Collection, arm: str) -> list[tuple[str, str, str, int, dict[str, Any], str]]:
    """Return (dataset, backbone, arm, seed, test scores, file) of every record of an arm.

    Raises ReportError with similar names if the arm has no record.
    """
    filters.require("arm", [arm], {record.arm for record in collection.records})
    return [
        (*r.trial.cell, r.trial.seed, r.test, run.where(run.record_path(r.trial)))
        for r in sorted(collection.records, key=lambda r: (r.trial.cell, r.trial.seed, r.trial.fold or 0))
        for run in [collection.run_by_id[r.id]]
        if r.arm == arm
    ]
