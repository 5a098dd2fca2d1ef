"""What one or several run folders hold, as one set: conflicts named, filtered, ready to become a leaderboard.

Filters come in two kinds. Dataset, backbone, protocol and seed choose records before anything is computed. Loss,
level and arm choose which rows are printed afterwards, so that differences, tests and ranks stay those of the whole
table; the baseline of a printed row is always printed with it.
"""

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from harness import registry
from harness.config import Trial
from harness.evaluation.editions import edition_of
from harness.fairness import rules
from harness.leaderboard import published, tables
from harness.leaderboard.tables import Block, Leaderboard, ReportError, Row
from harness.runs import outcomes
from harness.runs.errors import RunError
from harness.runs.record import Failure, Record
from harness.runs.run import Run

RECORDS: dict[str, Callable[[Trial], str]] = {
    "dataset": lambda trial: trial.dataset.name,
    "backbone": lambda trial: trial.backbone.name,
    "protocol": lambda trial: trial.protocol,
    "seed": lambda trial: str(trial.seed),
}
ROWS: dict[str, Callable[[Row], str]] = {
    "loss": lambda row: row.loss.partition("[")[0],
    "level": lambda row: row.level,
    "arm": lambda row: row.arm,
}
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

    def outcomes(self, record: Record, metrics: Sequence[str]) -> outcomes.ByClass | None:
        """What the test queries of a record came to, by class, the mean over folds; None where that was not kept."""
        if any(part.id not in self.with_queries for part in record.parts):
            return None
        paths = [self.home[part.id].per_query_path(part.id) for part in record.parts]
        return outcomes.mean([outcomes.by_class(path, tuple(metrics)) for path in paths])

    @cached_property
    def with_queries(self) -> frozenset[str]:
        """The ids of the records whose test read was kept."""
        kept = {id(run): run.with_queries() for run in self._runs()}
        return frozenset(record for record, run in self.home.items() if record in kept[id(run)])

    def pull_queries(self) -> None:
        """Bring what was kept of test reads up to date, where it lies in a bucket."""
        for run in self._runs():
            run.pull_queries()

    def _runs(self) -> list[Run]:
        return list({id(run): run for run in self.home.values()}.values())

    def leaderboard(self, metrics: Sequence[str] = ()) -> Leaderboard:
        """The leaderboard of everything here, with what the fairness rules find in it."""
        many = len(self.records) > MANY
        if not many:
            self.pull_queries()
        by_class = partial(self.outcomes, metrics=metrics or tables.FIRST_METRICS[: tables.SHOWN])
        found = rules.over_records(self.records, self.failures, self.planned)
        whole = [finding.sentence for finding in found if not finding.records]
        return tables.leaderboard(
            self.records,
            self.failures,
            self.planned,
            self.refused,
            outcomes=None if many else by_class,
            published=published.load(),
            metrics=metrics,
            notes=[*self.notes, *whole, *([_TOO_MANY] if many else [])],
            findings=found,
        )


_TOO_MANY = (
    f"Intervals over test classes are left out above {MANY:,} records; a report of some of them, such as "
    "--only dataset=…, has them."
)


def collect(
    folders: Sequence[str | Path],
    only: dict[str, Sequence[str]] | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Collection:
    """What these run folders hold of `only` ({"dataset": ["cub200"]}, see RECORDS).

    One trial in two folders counts once: where its scores differ, the first folder's are used and a note says so.
    Raises RunError for a folder that is no run folder, ValueError for a filter that nothing fits.
    """
    runs = [Run(folder, warn) for folder in folders]
    for run in runs:
        if not run.exists():
            raise RunError(f"{run.place} is not a run folder: it has no records/")
    names = dict(zip(map(id, runs), _names([run.address for run in runs]), strict=True))
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
                    notes.append(_conflict(first, record, names[id(home[record.id])], names[id(run)]))
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
        yield f"FAIR-25 records of several protocols ({', '.join(protocols)}): each has tables of its own."
    if len(evaluators) > 1:
        yield f"FAIR-25 records of {len(evaluators)} versions of the evaluator: each has tables of its own."


def parse(texts: Iterable[str]) -> dict[str, list[str]]:
    """Filters as they are written, `dataset=cub200` or `arm=contrastive,contrastive+input`, as {key: values}.

    A comma inside brackets belongs to the arm. Raises ReportError for what is no filter.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise ReportError(f"--only {text!r} is not written key=value, such as dataset=cub200")
        if key not in (*RECORDS, *ROWS):
            raise ReportError(f"--only {text}: " + registry.unknown("filter", key, (*RECORDS, *ROWS)))
        found.setdefault(key, []).extend(re.split(r",(?![^\[]*\])", values))
    return found


def _narrowed(whole: Collection, only: dict[str, Sequence[str]]) -> Collection:
    """The part of a collection that the filters on records let through."""
    trials = [*(r.trial for r in whole.records), *(f.trial for f in whole.failures), *whole.planned]
    wanted = {key: set(values) for key, values in only.items() if key in RECORDS}
    for key, values in wanted.items():
        _exist(key, values, {RECORDS[key](trial) for trial in trials}, f"--only {key}: ")

    def fits(trial: Trial) -> bool:
        return all(RECORDS[key](trial) in values for key, values in wanted.items())

    places = {"dataset": 0, "backbone": 1}
    return replace(
        whole,
        records=tuple(record for record in whole.records if fits(record.trial)),
        failures=tuple(failure for failure in whole.failures if fits(failure.trial)),
        planned=tuple(trial for trial in whole.planned if fits(trial)),
        refused=tuple(
            row for row in whole.refused if all(row[places[k]] in v for k, v in wanted.items() if k in places)
        ),
    )


def narrowed(board: Leaderboard, only: dict[str, Sequence[str]]) -> Leaderboard:
    """The leaderboard with the rows that filters on rows let through, and their baselines; the rest is unchanged."""
    wanted = {key: set(values) for key, values in only.items() if key in ROWS}
    if not wanted:
        return board
    rows = [row for block in board.blocks for row in block.rows]
    for key, values in wanted.items():
        _exist(key, values, {ROWS[key](row) for row in rows}, f"--only {key}: ")
    blocks = tuple(_of_rows(block, _printed(block, wanted)) for block in board.blocks)
    said = "; ".join(f"{key} {', '.join(sorted(values))}" for key, values in sorted(wanted.items()))
    note = f"Only {said}, with baselines: tests, ranks and marks are those of the whole table."
    return replace(board, blocks=tuple(block for block in blocks if block.rows), notes=(*board.notes, note))


def _of_rows(block: Block, rows: tuple[Row, ...]) -> Block:
    """The block with these rows, and of its notes and published rows those that concern them."""
    arms, losses = {row.arm for row in rows}, {row.loss for row in rows}
    return replace(
        block,
        rows=rows,
        findings=tuple(note for note in block.findings if not note.arms or arms & set(note.arms)),
        published=tuple(row for row in block.published if row.fits((block.dataset, block.backbone), losses)),
    )


def _printed(block: Block, wanted: dict[str, set[str]]) -> tuple[Row, ...]:
    kept: list[Row] = []
    baseline: Row | None = None
    for row in block.rows:
        baseline = baseline if row.indent else row
        if all(ROWS[key](row) in values for key, values in wanted.items()):
            if row.indent and baseline is not None and baseline not in kept:
                kept.append(baseline)
            kept.append(row)
    return tuple(kept)


def _exist(kind: str, values: Iterable[str], known: set[str], where: str = "") -> None:
    for value in sorted(values):
        if value not in known:
            raise ReportError(where + registry.unknown(kind, value, known))


def trace(collection: Collection, arm: str) -> list[tuple[str, str, str, int, dict[str, Any], str]]:
    """(dataset, backbone, arm, seed, test scores, file) of every record of an arm: where its numbers come from.

    Raises ReportError with near names where no record is of this arm.
    """
    _exist("arm", [arm], {record.arm for record in collection.records})
    return [
        (*r.trial.cell, r.trial.seed, r.test, run.where(run.record_path(r.trial)))
        for r in sorted(collection.records, key=lambda r: (r.trial.cell, r.trial.seed, r.trial.fold or 0))
        for run in [collection.home[r.id]]
        if r.arm == arm
    ]
