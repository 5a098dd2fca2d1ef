"""Rules about equal conditions of compared arms: budget, shared factors, evaluator."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.config import SHARED_BY_A_LOSS
from harness.errors import first_few
from harness.evaluation.editions import edition_of
from harness.fairness.comparability import differing, factors_of
from harness.fairness.rules import Results, Table, rule
from harness.fairness.rules._subjects import RecordTable, cell_of, ids

if TYPE_CHECKING:
    from harness.runs.record import Record

EQUAL = 0.005  # the deviation of ratios that are printed as 1.00
SEARCHED = ("search", "tuned")  # protocols in which every arm has its own learning rate


@rule("FAIR-07", "W", over="records")
def equal_compute(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Compared arms have the same training budget: epochs, steps, images, forward passes.

    A method with two forward passes a step uses twice the compute. Training the baseline for longer might gain as
    much. The ratio is printed, and a grid can add a baseline with as many passes (`compute_matched`).
    """
    for table in results.tables:
        for arm, baseline in table.baselines.items():
            own, base = table.arms[arm], table.arms.get(baseline, {})
            both = own.keys() & base.keys()
            passes = [sum(_passes(records[seed]) for seed in both) for records in (own, base)]
            if both and passes[1] > 0 and abs((ratio := passes[0] / passes[1]) - 1) > EQUAL:
                used = f"{round(ratio, 2)}x the forward passes of its baseline"
                yield f"{table.name}/{arm}: used {used}.", ids(own.values())


@rule("FAIR-07", "W", over="records")
def equal_steps(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All arms of a table train for the same number of steps and images."""
    for table in results.tables:
        budgets = {
            arm: {(r.cost.steps, r.cost.images_seen) for r in by_seed.values()}
            for arm, by_seed in table.arms.items()
            if next(iter(by_seed.values())).level != "longer"  # its name says by how much
        }
        counts = Counter(budget for own in budgets.values() for budget in own)
        if len(counts) < 2:
            continue
        usual = counts.most_common(1)[0][0]
        for arm, own in budgets.items():
            for steps, images in sorted(own - {usual}):
                budget = f"trained {steps} steps on {images} images, others {usual[0]} on {usual[1]}"
                yield f"{table.name}/{arm}: {budget}.", ids(table.arms[arm].values())


@rule("FAIR-07", "W", over="records")
def one_device(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Training times are compared on one kind of device."""
    for table in results.tables:
        parts = [part for record in table.records for part in record.parts]
        devices = sorted({str(part.provenance["device"]) for part in parts if part.provenance.get("device")})
        if len(devices) > 1:
            yield (
                f"{table.name}: trained on {first_few(devices)}: training times compare devices too.",
                ids(table.records),
            )


def _passes(record: Record) -> float:
    """Return the forward passes of a whole training, in batches."""
    return record.cost.steps * record.cost.forward_passes_per_step


@rule("FAIR-08", "W", over="records")
def shared_factors(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Everything but the method is equal within a table.

    Backbone, weights, dimension, pooling, resolution, augmentation, optimiser, epochs, batch: each of them changes
    the score by more than most methods do. Rows that differ in one of them get a table of their own.
    """
    largest: dict[tuple[str, str], RecordTable] = {}
    for table in results.tables:
        first = largest.setdefault(table.place, table)
        if first is not table:
            values = first_few(
                [_differing(key, table.factors, first.factors) for key in differing(table.factors, first.factors)]
            )
            n = f"{len(table.records)} record{'s' * (len(table.records) > 1)}"
            yield f"{table.name}: {n} with {values}: moved to their own table.", ids(table.records)


@rule("FAIR-08", "W", over="records")
def shared_steps(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Learning rate and schedule equal those of the arm's baseline, unless each arm was tuned."""
    for table in results.tables:
        if table.factors.get("protocol") in SEARCHED:
            continue
        for arm, baseline in table.baselines.items():
            own, base = (_step_sizes(table.arms.get(name, {}).values()) for name in (arm, baseline))
            for setting in SHARED_BY_A_LOSS:
                values, others = ({steps[setting] for steps in each} for each in (own, base))
                if others and values != others:
                    difference = f"{setting} = {_listed(values)}, its baseline {_listed(others)}"
                    yield f"{table.name}/{arm}: {difference}.", ids(table.arms[arm].values())


@rule("FAIR-08", "W", over="records")
def same_start(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All arms of a seed start from the same weights."""
    for table in results.tables:
        begun: dict[int, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
        for record in (part for whole in table.records for part in whole.parts):
            if weights := record.provenance.get("initial_weights"):
                begun[record.trial.seed][weights].append(record)
        for seed, by_weights in sorted(begun.items()):
            if len(by_weights) > 1:
                odd = min(by_weights.values(), key=len)
                arms = first_few(sorted({record.arm for record in odd}))
                yield f"{table.name}: initial weights differ between arms of seed {seed} ({arms}).", ids(odd)


@rule("FAIR-08", "W", over="records")
def one_record_a_seed(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """An arm has one record for each seed."""
    for table in results.tables:
        counted = {record.id for by_seed in table.arms.values() for record in by_seed.values()}
        for record in table.records:
            if record.id not in counted:
                yield f"{record.id} repeats an arm and seed of its table.", ids((record,))


@rule("FAIR-08", "W", over="records")
def batch_norm_of_whole_batches(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """If BatchNorm is trained, its statistics are those of a whole batch.

    A batch that does not fit in memory is forwarded in chunks. Losses, pairs and gradients are those of the batch,
    but each chunk is normalised by itself, as with a smaller batch.
    """
    for record in results.tested:
        if rows := record.provenance.get("batch_norm_rows"):
            seen = f"BatchNorm saw chunks of {rows} rows, not the batch of {record.trial.schedule.batch_size}"
            yield f"{cell_of(record)} {record.trial.seed_and_fold}: {seen}.", (record.id,)


@rule("FAIR-08", "E", over="table")
def rows_share_every_factor(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Rows of one table share every factor."""
    trained = [record for record in table.records if record.level != "floor"]
    if trained:
        usual, others = _majority(trained)
        for key, by_value in others.items():
            for records in by_value.values():
                values = _differing(key, factors_of(records[0]), usual)
                n = f"{len(records)} row{'s' * (len(records) > 1)}"
                yield f"{table.name}: {n} with {values}, forced into one table.", ids(records)


@rule("FAIR-25", "E", over="table")
def one_evaluator(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A table has one protocol version and one evaluator.

    The same embedding gets another score under another tie rule or selection. Such numbers look similar but are not
    comparable.
    """
    kinds = {
        "protocols": lambda r: f"{r.protocol.get('name')} version {r.protocol.get('version')}",
        "evaluators": lambda r: str(edition_of(r.provenance.get("evaluator")))[:12],
    }
    for kind, name_of in kinds.items():
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in table.records:
            groups[name_of(record)].append(record)
        if len(groups) > 1:
            counts = ", ".join(f"{name} ({len(records)})" for name, records in sorted(groups.items()))
            yield f"{table.name}: {len(groups)} {kind} in one table: {counts}.", ids(min(groups.values(), key=len))


def _majority(records: Iterable[Record]) -> tuple[dict[str, Any], dict[str, dict[str, list[Record]]]]:
    """Return the most common value of each factor, and the records of other values: factor → value → records."""
    values: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    known: dict[tuple[str, str], Any] = {}
    for record in records:
        for key, value in factors_of(record).items():
            values[key][str(value)].append(record)
            known[key, str(value)] = value
    usual = {key: max(by_value, key=lambda value: len(by_value[value])) for key, by_value in values.items()}
    others = {key: {v: r for v, r in by_value.items() if v != usual[key]} for key, by_value in values.items()}
    return {key: known[key, value] for key, value in usual.items()}, {k: v for k, v in others.items() if v}


def _differing(key: str, one: dict[str, Any], other: dict[str, Any]) -> str:
    return f"{key} = {_short(one.get(key))}, others {_short(other.get(key))}"


def _short(value: Any) -> str:
    """Return a factor's value as text; of a fingerprint, the first twelve digits."""
    text = str(value)
    return text[:12] if len(text) >= 40 and text.isalnum() else text


def _step_sizes(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [{name: getattr(record.trial.training, name) for name in SHARED_BY_A_LOSS} for record in records]


def _listed(values: Iterable[Any]) -> str:
    return " or ".join(sorted(f"{v:g}" if isinstance(v, float) else str(v) for v in values))
