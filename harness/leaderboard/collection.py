"""What one or several run folders hold, as one set: conflicts named, filtered, ready to become a leaderboard."""

import gc
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

MANY = 2000  # records from which no more queries are read for intervals over test classes: it would take minutes


@dataclass(frozen=True)
class Collection:
    """Records, failures, planned trials and refused combinations of several runs; `home`: record id → its run."""

    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    planned: tuple[Trial, ...]
    refused: tuple[tuple[str, str, str, str], ...]
    home: dict[str, Run]
    notes: tuple[str, ...] = ()

    def outcomes(self, id: str, metrics: Sequence[str]) -> outcomes.ByClass | None:
        """Return what the test queries of a record came to, by class; None where that was not kept.

        Raises RunError where it cannot be read.
        """
        if id not in self.with_queries:
            return None
        return outcomes.by_class(self.home[id].per_query_path(id), tuple(metrics))

    @cached_property
    def by_id(self) -> dict[str, Record]:
        return {record.id: record for record in self.records}

    @cached_property
    def with_queries(self) -> frozenset[str]:
        """The ids of the records whose test read was kept."""
        kept = {run: run.with_queries() for run in self._runs()}
        return frozenset(record for record, run in self.home.items() if record in kept[run])

    def pull_queries(self) -> None:
        """Bring what was kept of test reads up to date, where it lies in a bucket."""
        for run in self._runs():
            run.pull_queries()

    def _runs(self) -> list[Run]:
        return list(dict.fromkeys(self.home.values()))

    def board(self, metrics: Sequence[str] = ()) -> Board:
        """Return the leaderboard of everything here, with what the fairness rules find in it."""
        many = len(self.records) > MANY
        if not many:
            self.pull_queries()
        read = metrics or FIRST_METRICS[:SHOWN]
        damaged: list[str] = []

        def by_class(id: str) -> outcomes.ByClass | None:
            try:
                return self.outcomes(id, read)
            except RunError as error:
                damaged.append(f"{error}. Its row has no interval over test classes.")
                return None

        with _many_objects():
            found = rules.over_records(self.records, self.failures, self.planned)
            board = board_of(
                self.records,
                self.failures,
                self.planned,
                self.refused,
                outcomes=None if many else by_class,
                published=published.load(),
                metrics=metrics,
                notes=[*self.notes, *(finding.sentence for finding in found if not finding.records)],
                findings=found,
            )
        if many:
            gc.freeze()
        return replace(board, notes=(*board.notes, *dict.fromkeys(damaged), *([_TOO_MANY] if many else [])))


_TOO_MANY = (
    f"Intervals over test classes are left out above {MANY:,} records; a report of fewer records has them, "
    "such as one with --only dataset=…."
)


def collect(
    folders: Sequence[str | Path],
    only: Mapping[str, Sequence[str]] | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Collection:
    """What these run folders hold of `only` ({"dataset": ["cub200"]}, see `filters`).

    One trial in two folders counts once: where its scores differ, the first folder's are used and a note says so.
    Raises RunError for a folder that is no run folder, ValueError for a filter that nothing fits.
    """
    runs = [Run(folder, warn) for folder in folders]
    for run in runs:
        if not run.exists():
            raise RunError(f"{run.place} is not a run folder: it has no records/")
    names = dict(zip(runs, _names([run.address for run in runs]), strict=True))
    kept: dict[str, Record] = {}
    home: dict[str, Run] = {}
    notes: list[str] = []
    with _many_objects():
        for run in runs:
            for record in map(_lean, run.each_record()):
                first = kept.setdefault(record.id, record)
                if first is record:
                    home[record.id] = run
                elif first.test != record.test:
                    notes.append(_conflict(first, record, names[home[record.id]], names[run]))
    if len(kept) > MANY:
        gc.freeze()  # what was read stays until the process ends: the collector need not walk it
    asked = [run.requested() for run in runs]
    whole = Collection(
        records=tuple(kept.values()),
        failures=tuple(failure for run in runs for failure in run.failures()),
        planned=tuple({trial.id: trial for some in asked for trial in some.trials}.values()),
        refused=tuple(dict.fromkeys(row for some in asked for row in some.refused)),
        home=home,
        notes=(*notes, *_protocols(kept.values())),
    )
    return _narrowed(whole, only) if only else whole


def _narrowed(whole: Collection, only: Mapping[str, Sequence[str]]) -> Collection:
    """The part of a collection that the filters on records let through."""
    trials = [*(r.trial for r in whole.records), *(f.trial for f in whole.failures), *whole.planned]
    passes = filters.of_trials(only, trials)
    wanted = [(place, set(only[key])) for place, key in enumerate(("dataset", "backbone")) if key in only]
    return replace(
        whole,
        records=tuple(record for record in whole.records if passes(record.trial)),
        failures=tuple(failure for failure in whole.failures if passes(failure.trial)),
        planned=tuple(trial for trial in whole.planned if passes(trial)),
        refused=tuple(row for row in whole.refused if all(row[place] in values for place, values in wanted)),
    )


@contextmanager
def _many_objects() -> Iterator[None]:
    """Without the collector of cycles, which would walk all objects again and again: a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch as reports read it, in a third of the memory: a large collection has hundreds of thousands."""

    epoch: int
    loss: float | None
    lr: float
    validation: dict[str, float]
    train_s: float
    validation_s: float
    spread: dict[str, float]


_NOTHING: dict[str, float] = {}


def _lean(record: Record) -> Record:
    """The record with its curve as points."""
    curve = tuple(
        Point(e.epoch, e.loss, e.lr, e.validation, e.train_s, e.validation_s, e.spread or _NOTHING)
        for e in record.curve
    )
    return record.model_copy(update={"curve": curve})


def _names(folders: Sequence[str]) -> list[str]:
    """The last part of each path or URL, longer where two would be the same."""
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
    """That records of several protocols or evaluators are here, which no table mixes."""
    records = [record for record in records if record.test]
    protocols = sorted({f"{r.protocol.get('name')} version {r.protocol.get('version')}" for r in records})
    evaluators = {edition_of(r.provenance.get("evaluator")) for r in records}
    if len(protocols) > 1:
        yield f"FAIR-25 records of several protocols ({', '.join(protocols)}): each protocol has its own tables."
    if len(evaluators) > 1:
        yield f"FAIR-25 records of {len(evaluators)} versions of the evaluator: each version has its own tables."


def trace(collection: Collection, arm: str) -> list[tuple[str, str, str, int, dict[str, Any], str]]:
    """(dataset, backbone, arm, seed, test scores, file) of every record of an arm: where its numbers come from.

    Raises ReportError with near names where no record is of this arm.
    """
    filters.require("arm", [arm], {record.arm for record in collection.records})
    return [
        (*r.trial.cell, r.trial.seed, r.test, run.where(run.record_path(r.trial)))
        for r in sorted(collection.records, key=lambda r: (r.trial.cell, r.trial.seed, r.trial.fold or 0))
        for run in [collection.home[r.id]]
        if r.arm == arm
    ]
