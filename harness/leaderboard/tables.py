"""Records into tables: which numbers may stand beside each other, what they are, and the words that say so.

A leaderboard is built from records and from nothing else. One block holds what may be compared: one dataset, one
backbone and one value of every shared factor (FAIR-08); whatever differs goes to a block of its own, with the
differing factors named. In a block the rows are grouped by loss, its Metrix variants under it, floors last.
Nothing is dropped: what is missing, failed or not applicable has a row with its state and reason (FAIR-20).
Scores stay fractions in [0, 1] here; reports print them in percent.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from harness import registry
from harness.config import FLOORS, LEVELS, SHARED_BY_A_LOSS, Arm, Trial
from harness.errors import UserError
from harness.fairness.rules import factors_of
from harness.leaderboard import captions
from harness.leaderboard.captions import Note
from harness.leaderboard.comparisons import BEST, SECOND, SIGNIFICANT, Column, Variance, judged, sources_of_variance
from harness.leaderboard.published import Published
from harness.leaderboard.statistics import Interval, PairedDifference, RankInterval, mean_interval, paired_difference
from harness.runs import folds
from harness.runs.outcomes import ByClass
from harness.runs.record import Failure, Record

FIRST_METRICS = ("R@1", "MAP@R", "R-Precision")
SHOWN = 2  # metrics that a table has room for, unless others are named


class ReportError(UserError):
    """A report that cannot be made as it was asked for."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row over its seeds, and its paired difference to the row's own baseline where it has one.

    adjusted_p       Holm-adjusted p of that difference; None where it was not tested
    marks            of best (bold), second (underlined), significant (dagger)
    rank             among the trained rows of the block (equal means share the better one), with the ranks that the
                     data do not exclude
    bootstrap        the interval over seeds that does not take them as normal, from five
    classes, both    the interval over test classes alone, and over training seeds and test classes together
    difference_both  the latter of the paired difference
    """

    interval: Interval
    by_seed: dict[int, float]
    paired: PairedDifference | None = None
    adjusted_p: float | None = None
    marks: tuple[str, ...] = ()
    rank: RankInterval | None = None
    bootstrap: Interval | None = None
    classes: Interval | None = None
    both: Interval | None = None
    difference_both: Interval | None = None

    @property
    def best(self) -> bool:
        """Whether it is the highest mean of its column or not separable from it."""
        return BEST in self.marks

    @property
    def second(self) -> bool:
        """Whether it is the second highest distinct mean of its column; none is where all are equal."""
        return SECOND in self.marks

    @property
    def significant(self) -> bool:
        """Whether it differs from its baseline, allowing for all such tests of the column."""
        return SIGNIFICANT in self.marks

    @property
    def mean(self) -> float:
        """The mean over seeds, a fraction."""
        return self.interval.mean

    @property
    def half(self) -> float | None:
        """Half the width of the interval; None with fewer than three seeds."""
        return _finite(self.interval.half)

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def difference(self) -> float | None:
        """The mean over common seeds of this row minus its baseline; None without a common seed."""
        return self.paired and self.paired.mean

    @property
    def difference_half(self) -> float | None:
        """Half the width of the paired interval; None with fewer than three common seeds."""
        return self.paired and _finite(self.paired.half)


@dataclass(frozen=True)
class Row:
    """One arm of a block. `name` is what a table prints: variants are short, because they stand under their loss.

    `records` are one a seed; `parts` the stored ones they are made of, one a fold where a seed has folds.
    `state`: ok, partial (some seeds are missing or failed), fail (no seed finished), -- (not run yet), n/a (this
    loss has no such Metrix form). `reason` says why in a sentence unless the state is ok. `relative_time` and
    `relative_passes` are ratios to the own baseline over the seeds both have.
    """

    arm: str
    name: str
    loss: str
    level: str
    state: str
    reason: str = ""
    seeds: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    relative_time: float | None = None
    relative_passes: float | None = None
    records: tuple[Record, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def parts(self) -> tuple[Record, ...]:
        """The stored records behind the row."""
        return tuple(part for record in self.records for part in record.parts)

    @property
    def full(self) -> str:
        """The name where it does not stand under its loss: the arm, and its step sizes where several have it."""
        return self.loss + self.name if self.indent else self.name

    @property
    def floor(self) -> bool:
        return self.level == "floor"

    @property
    def indent(self) -> bool:
        """Whether the row stands under its baseline."""
        return self.level not in ("baseline", "floor")

    @property
    def train_s(self) -> float | None:
        """Mean seconds inside training steps, of all folds together; None where nothing was trained."""
        return None if self.floor else _mean([r.cost.train_s for r in self.records])

    @property
    def passes(self) -> float | None:
        """Mean forward passes a step: rows through the network ÷ batch; None where nothing was trained."""
        return None if self.floor else _mean([r.cost.forward_passes_per_step for r in self.records])

    @property
    def peak_gb(self) -> float | None:
        """Mean peak memory; None without a record that knows it."""
        return _mean([r.cost.peak_gb for r in self.records if r.cost.peak_gb is not None])

    @property
    def parameters(self) -> int | None:
        """Parameters of the network; None without a record."""
        return self.records[0].cost.parameters if self.records else None


@dataclass(frozen=True)
class Block:
    """Rows that may be compared; `factors` tell it from other blocks of the same dataset and backbone.

    `shown` are the metrics that tables print, in their order. `findings` are what a reader must know, with the arms
    they concern. `published` rows were measured by others, elsewhere: no number of theirs enters any of ours.
    """

    dataset: str
    backbone: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    factors: tuple[tuple[str, Any], ...] = ()
    caption: tuple[str, ...] = ()
    findings: tuple[Note, ...] = ()
    shown: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences of the findings, those that say the same of many rows in one."""
        return captions.condensed(self.findings)

    @cached_property
    def below(self) -> frozenset[str]:
        """The arms that training left below their own starting point (FAIR-26)."""
        return frozenset(arm for note in self.findings if note.rule == captions.BELOW for arm in note.arms)

    def column(self, metric: str) -> Column:
        """What holds for one metric."""
        return next((column for column in self.columns if column.metric == metric), Column(metric))

    @property
    def trained(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.floor)

    @property
    def floors(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.floor)

    @property
    def groups(self) -> tuple[tuple[Row, ...], ...]:
        """The trained rows, one tuple a loss, its baseline first."""
        groups: list[list[Row]] = []
        for row in self.trained:
            if not row.indent:
                groups.append([])
            groups[-1].append(row)
        return tuple(map(tuple, groups))


@dataclass(frozen=True)
class Leaderboard:
    """All blocks, and what holds for each of them. `partial`: trials that should be there are not.

    `variance`: what moves the first metric over all blocks, where they make a grid. `gallery`: pictures of what some
    arms retrieve, where a report has them.
    """

    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    partial: bool
    done: int
    total: int
    variance: Variance | None = None
    gallery: tuple[Any, ...] = ()

    @property
    def caption(self) -> tuple[str, ...]:
        """What the numbers of every block are, for a format that prints its rows and marks and nobody else's."""
        return captions.of_leaderboard(self)


def cells(records: Iterable[Record]):
    """A long pandas DataFrame: one line a record and metric, `value` the test score and `validation` its twin.

    Scores are fractions in [0, 1]; `validation` is of the selected epoch, NaN where that metric was not computed.
    """
    import pandas

    columns = ["record", "dataset", "backbone", "arm", "baseline", "level", "seed", "metric", "value", "validation"]
    lines = [
        (r.id, *_place(r.trial), r.arm, r.baseline, r.level, r.trial.seed, metric, value, r.validation.get(metric))
        for r in records
        for metric, value in r.test.items()
    ]
    return pandas.DataFrame(lines, columns=columns).astype({"value": float, "validation": float, "seed": int})


KINDS = {"text": "string", "integer": "Int64", "number": "Float64", "truth": "boolean"}


def parquet(lines: Iterable[dict[str, Any]], kinds: dict[str, str]) -> bytes:
    """Lines as a Parquet file; `kinds` are the columns in order with their type: text, integer, number or truth.

    What a line does not have, or has as None or NaN, is null. Equal lines give equal bytes.
    """
    import pandas

    lines = list(lines)
    columns = {name: pandas.array([line.get(name) for line in lines], KINDS[kind]) for name, kind in kinds.items()}
    return pandas.DataFrame(columns).to_parquet(index=False)


def leaderboard(
    records: Iterable[Record],
    failures: Iterable[Failure] = (),
    planned: Iterable[Trial] = (),
    refused: Iterable[tuple[str, str, str, str]] = (),
    title: str | None = None,
    *,
    outcomes: Callable[[Record], ByClass | None] | None = None,
    published: Sequence[Published] = (),
    metrics: Sequence[str] = (),
    notes: Sequence[str] = (),
    findings: Sequence[Any] = (),
) -> Leaderboard:
    """The leaderboard of records, in any order; the same records give the same leaderboard.

    `planned` are the trials that should exist: those without a record make the leaderboard partial. `refused` are
    (dataset, backbone, arm, reason) of combinations without a Metrix form, shown as n/a. Without `planned`, a seed
    that other rows of the block have is expected of every trained row. Records without a test score (trials of a
    search) are no rows. Of a seed of several folds the row has the mean over all of them, or none (see
    `harness.runs.folds`); `done` and `total` count trials.

    `outcomes` gives what a record's test queries came to, for intervals over test classes; `published` are numbers
    to show beside ours; `metrics` the ones that tables print (R@1 and MAP@R where none is named); `notes` what was
    found on the way to these records; `findings` of the fairness rules, each with `sentence` and `records`.
    Raises ReportError for a metric that no record has.
    """
    records = sorted((record for record in records if record.test), key=lambda record: record.id)
    _known(metrics, records)
    failures = sorted(failures, key=lambda failure: failure.id)
    done = {record.trial.id for record in records}
    seeds = folds.by_seed(records, failures, planned)
    wanted = {trial.id for whole in seeds.planned for trial in whole.each_fold()}
    total = len({*done, *wanted, *(failure.trial.id for failure in failures)})
    records, planned = seeds.records, {trial.id: trial for trial in seeds.planned}
    finished = {record.trial.id for record in records}
    failed = {f.trial.id: f for f in seeds.failures if f.trial.id not in finished}
    entries = [_Entry(r.trial, r.arm, r.baseline, r.level, record=r) for r in records]
    entries += [_entry(f.trial, failure=f) for f in failed.values()]
    waiting = [trial for id, trial in sorted(planned.items()) if id not in finished and id not in failed]
    entries += [_entry(trial, lacks=seeds.missing.get(trial.id, "")) for trial in waiting]
    tables = _tables(entries)
    hopeless: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for dataset, backbone, arm, reason in refused:
        hopeless[dataset, backbone].append((arm, reason))
    tables += [_Table(place, {}, []) for place in sorted({*hopeless} - {table.place for table in tables})]
    beside = _Beside(bool(planned), outcomes, tuple(published), tuple(metrics), tuple(findings))
    blocks = tuple(_block(table, _differing(table, tables), hopeless[table.place], beside) for table in tables)
    variance = sources_of_variance(blocks, (*metrics, FIRST_METRICS[0])[0])
    missing = any(row.state == "partial" for block in blocks for row in block.rows)
    grids = sorted({str(record.grid["name"]) for record in records if record.grid.get("name")})
    return Leaderboard(
        title=title or " and ".join(grids) or "results",
        blocks=blocks,
        notes=(*notes, *(() if blocks else ("There is no record yet: nothing has finished.",))),
        partial=missing or total > len(done) or not blocks,
        done=len(done),
        total=total,
        variance=variance,
    )


def _known(metrics: Sequence[str], records: Sequence[Record]) -> None:
    """Refuse the name of a metric that nothing was scored by, and one that is named twice."""
    if len(set(metrics)) < len(metrics):
        raise ReportError(f"a metric is named twice in {', '.join(metrics)}")
    have = {metric for record in records for metric in record.test}
    for metric in metrics if records else ():
        if metric not in have:
            raise ReportError(registry.unknown("metric in these records", metric, have))


@dataclass(frozen=True)
class _Entry:
    """A seed of an arm that has a record, a failure, or neither yet; `lacks`: the folds it waits for, in words."""

    trial: Trial
    arm: str
    baseline: str
    level: str
    record: Record | None = None
    failure: Failure | None = None
    lacks: str = ""

    @cached_property
    def factors(self) -> dict[str, Any]:
        """Whatever must be equal for two numbers to stand in one table (FAIR-08, FAIR-25), as far as it is known."""
        return {"folds": None, **(self.trial.shared if self.record is None else factors_of(self.record))}

    @property
    def steps(self) -> dict[str, Any]:
        """The step sizes, which a loss shares with its variants but not with other losses."""
        return {} if self.level == "floor" else {k: getattr(self.trial.training, k) for k in SHARED_BY_A_LOSS}


def _entry(trial: Trial, failure: Failure | None = None, lacks: str = "") -> _Entry:
    return _Entry(trial, trial.arm.label, trial.arm.baseline, trial.arm.at, failure=failure, lacks=lacks)


@dataclass
class _Table:
    """A block in the making."""

    place: tuple[str, str]
    factors: dict[str, Any]
    entries: list[_Entry]


def _tables(entries: Sequence[_Entry]) -> list[_Table]:
    """Entries by what they may be compared with: trained ones by all factors, floors where all but training agrees.

    A trial without a record does not know its data and evaluator: it joins the largest table that its settings fit.
    """
    tables: dict[str, _Table] = {}
    trained = [e for e in entries if e.level != "floor"]
    for entry in [e for e in trained if e.record]:
        table = tables.setdefault(_key(entry.factors), _Table(_place(entry.trial), entry.factors, []))
        table.entries.append(entry)
    for entry in [e for e in trained if not e.record]:
        home = max(_fitting(tables.values(), entry.factors), key=lambda t: len(t.entries), default=None)
        if home is None:
            home = tables[_key(entry.factors)] = _Table(_place(entry.trial), entry.factors, [])
        home.entries.append(entry)
    _place_floors([e for e in entries if e.level == "floor"], tables)
    return sorted(tables.values(), key=lambda t: (t.place, -len(t.entries), _key(t.factors)))


def _place_floors(floors: Sequence[_Entry], tables: dict[str, _Table]) -> None:
    """Put each floor into every table that its data and network fit; one of the same training goes before others."""
    for exact in (True, False):
        for entry in floors:
            training = () if exact else ("training.",)
            factors = {k: v for k, v in entry.factors.items() if not k.startswith(("weights", *training))}
            homes = _fitting(tables.values(), factors)
            if not homes and not exact:
                homes = [tables.setdefault(_key(factors), _Table(_place(entry.trial), factors, []))]
            for home in homes:
                if not any((e.arm, e.trial.seed) == (entry.arm, entry.trial.seed) for e in home.entries):
                    home.entries.append(entry)


def _fitting(tables: Iterable[_Table], factors: dict[str, Any]) -> list[_Table]:
    return [t for t in tables if all(t.factors.get(k, v) == v for k, v in factors.items())]


def _differing(table: _Table, tables: Sequence[_Table]) -> tuple[tuple[str, Any], ...]:
    """The factors of `table` in which tables of the same dataset and backbone differ, where it knows them."""
    others = [other for other in tables if other.place == table.place]
    return tuple(
        (key, value)
        for key, value in sorted(table.factors.items())
        if any(other.factors.get(key, value) != value for other in others)
    )


@dataclass(frozen=True)
class _Beside:
    """What all blocks are made with. `planned`: the plan is known, so only planned seeds are expected."""

    planned: bool
    outcomes: Callable[[Record], ByClass | None] | None
    published: tuple[Published, ...]
    metrics: tuple[str, ...]
    findings: tuple[Any, ...]


def _block(
    table: _Table, factors: tuple[tuple[str, Any], ...], refused: Sequence[tuple[str, str]], beside: _Beside
) -> Block:
    """One block: rows, columns, caption and notes."""
    seeds = set() if beside.planned else {e.trial.seed for e in table.entries if e.level != "floor"}
    groups: dict[tuple[str, str], dict[str, list[_Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in table.entries:
        shared = {} if entry.trial.arm.tuned else entry.steps  # a search may give every arm its own
        groups[entry.baseline, _key(shared)][entry.arm].append(entry)
    losses = [loss for loss, _ in groups]
    for arm, _ in refused:
        if (loss := Arm.parse(arm).baseline) not in losses:
            groups[loss, _key({})] = {}
    rows: list[Row] = []
    for (loss, _), arms in sorted(groups.items(), key=lambda item: _group_order(item[0][0], item[0][1])):
        hopeless = [(arm, reason) for arm, reason in refused if Arm.parse(arm).baseline == loss]
        rows += _group(loss, arms, seeds, hopeless, several=losses.count(loss) > 1)
    finished = [e.record for e in table.entries if e.record]
    metrics = _ordered({metric for record in finished for metric in record.test}) or FIRST_METRICS[:2]
    shown = tuple(metric for metric in beside.metrics if metric in metrics) or metrics[:SHOWN]
    rows, columns = judged(rows, metrics, beside.outcomes)
    losses = {row.loss for row in rows}
    return Block(
        *table.place,
        metrics=metrics,
        rows=tuple(rows),
        factors=factors,
        caption=captions.of_block(rows, finished, [e.trial for e in table.entries], columns, shown),
        findings=captions.notes(table.place, rows, finished, columns, shown, beside.findings),
        shown=shown,
        columns=columns,
        published=tuple(row for row in beside.published if row.fits(table.place, losses)),
    )


def _group(
    loss: str,
    arms: dict[str, list[_Entry]],
    seeds: set[int],
    refused: Sequence[tuple[str, str]],
    several: bool,
) -> list[Row]:
    """The rows of one loss with one set of step sizes, or of a floor; `several` sets are told apart in the name."""
    steps = next((entries[0].steps for entries in arms.values()), {})
    extra = f" ({captions.step_sizes(steps)})" if several else ""
    made = {arm: _row(arm, extra, entries, seeds) for arm, entries in arms.items()}
    if loss not in made:
        reason = "not run: its variants have no difference" if arms else "not run"
        made[loss] = Row(loss, loss + extra, loss, "baseline", "--", reason, steps=steps)
    for arm, reason in refused:
        if arm not in made:
            level = Arm.parse(arm).at
            made[arm] = Row(arm, _name(arm, loss, level, extra), loss, level, "n/a", reason, steps=steps)
    return [_compared(row, made[loss]) for row in sorted(made.values(), key=_row_order)]


def _row(arm: str, extra: str, entries: Sequence[_Entry], expected: set[int]) -> Row:
    """The row of one arm without its differences; a second record of a seed is left to the notes."""
    first = entries[0]
    by_seed = {e.trial.seed: e.record for e in reversed(entries) if e.record}
    failures = {e.trial.seed: e.failure for e in reversed(entries) if e.failure and e.trial.seed not in by_seed}
    expected = {*(e.trial.seed for e in entries), *(expected if first.level != "floor" else ())}
    seeds = sorted(by_seed)
    lacking = [seed for seed in sorted(expected) if seed not in by_seed and seed not in failures]
    reasons = _reasons(failures)
    if lacking:
        lacks = {e.trial.seed: e.lacks for e in entries if e.lacks}
        named = ", ".join(f"{seed}{lacks.get(seed, '')}" for seed in lacking)
        reasons.append(("missing" if seeds or lacks else "not run yet") + f": seed {named}")
    state = "ok" if not reasons else "partial" if seeds else "fail" if failures else "--"
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for seed in seeds:
        for metric, value in by_seed[seed].test.items():
            if math.isfinite(value):
                scores[metric][seed] = value
    return Row(
        arm=arm,
        name=_name(arm, first.baseline, first.level, extra),
        loss=first.baseline,
        level=first.level,
        state=state,
        reason="; ".join(reasons),
        seeds=tuple(seeds),
        expected=tuple(sorted(expected)),
        cells={m: Cell(mean_interval(list(s.values())), s) for m, s in sorted(scores.items())},
        steps=first.steps,
        records=tuple(by_seed[seed] for seed in seeds),
        failures=tuple(failure for _, failure in sorted(failures.items())),
    )


def _compared(row: Row, baseline: Row) -> Row:
    """The row with its paired differences and relative costs; floors and baselines have none."""
    if not row.indent:
        return row
    own, base = ({r.trial.seed: r.cost for r in some.records} for some in (row, baseline))
    both = sorted(own.keys() & base.keys())
    return replace(
        row,
        cells={metric: _paired(cell, baseline.cells.get(metric)) for metric, cell in row.cells.items()},
        relative_time=_ratio([own[s].train_s for s in both], [base[s].train_s for s in both]),
        relative_passes=_ratio(
            [own[s].forward_passes_per_step for s in both], [base[s].forward_passes_per_step for s in both]
        ),
    )


def _paired(cell: Cell, baseline: Cell | None) -> Cell:
    if baseline is None or not cell.by_seed.keys() & baseline.by_seed.keys():
        return cell
    return replace(cell, paired=paired_difference(cell.by_seed, baseline.by_seed))


def _reasons(failures: dict[int, Failure]) -> list[str]:
    """Why seeds failed, one sentence a reason: `seed 0, 1 failed 3x (out of memory: …)`."""
    seeds: dict[str, list[str]] = defaultdict(list)
    for seed, failure in sorted(failures.items()):
        times = f" {failure.attempts}x" if failure.attempts > 1 else ""
        first = (failure.reason.strip().splitlines() or [""])[0].rstrip(".")
        kind = "" if failure.kind in ("error", "refused") else failure.kind
        seeds[f"failed{times} ({': '.join(filter(None, (kind, first))) or 'error'})"].append(str(seed))
    return [f"seed {', '.join(who)} {said}" for said, who in seeds.items()]


def _name(arm: str, loss: str, level: str, extra: str) -> str:
    return arm + extra if level in ("baseline", "floor") else arm.removeprefix(loss)


def _group_order(loss: str, steps: str):
    return loss in FLOORS, FLOORS.index(loss) if loss in FLOORS else 0, loss, steps


def _row_order(row: Row) -> tuple[int, str]:
    return (LEVELS.index(row.level) if row.level in LEVELS else len(LEVELS)), row.arm


def _ordered(metrics: set[str]) -> tuple[str, ...]:
    """R@1, MAP@R, R-Precision, then R@K by K, then whatever else."""

    def order(metric: str):
        if metric in FIRST_METRICS:
            return 0, FIRST_METRICS.index(metric), metric
        at = metric.removeprefix("R@")
        return (1, int(at), metric) if at.isdigit() else (2, 0, metric)

    return tuple(sorted(metrics, key=order))


def _place(trial: Trial) -> tuple[str, str]:
    return trial.dataset.name, trial.backbone.name


def _key(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _ratio(own: Sequence[float], base: Sequence[float]) -> float | None:
    """Total over total, None without a positive base."""
    return math.fsum(own) / math.fsum(base) if math.fsum(base) > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
