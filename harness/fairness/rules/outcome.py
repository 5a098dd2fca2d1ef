"""What became of the trials: missing, failed, collapsed and worsened ones are named, all can be traced."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.config import FLOORS
from harness.errors import some
from harness.evaluation import NOISE
from harness.fairness.protocols import FAIR
from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import cell_of, ids
from harness.runs.folds import named

if TYPE_CHECKING:
    from harness.config import Trial
    from harness.runs.record import Epoch, Failure, Record

COLLAPSED = 0.01  # of √(1/d), the embedding std where directions are spread evenly
ONE_DIRECTION = 1.5  # effective rank below which a single direction carries the embedding
FIRST = ("R@1", "MAP@R")  # the scores that are named where they fell
EXPLAINED = ("error", "refused")  # kinds of failures of which only the reason tells
CODE = ("revision", "sources")
ORIGINS = ("packages", "device", "tested_weights", "evaluator")


@rule("FAIR-20", "W", over="records")
def failed_are_shown(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Missing and failed cells are shown with state and reason.

    A table without the runs that crashed or diverged shows a method's better half.
    """
    finished = {record.id for record in results.records}
    failed: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in results.failures:
        if failure.id not in finished:
            times = f"failed {failure.attempts}x" if failure.attempts > 1 else "failed"
            said = f"{times} ({failure.kind if failure.kind not in EXPLAINED else _first_line(failure.reason)})"
            failed["/".join(failure.trial.cell), said].append(failure)
    for (cell, said), failures in sorted(failed.items()):
        yield f"{cell}: {said}, seed {named(f.trial for f in failures)}.", (failure.id for failure in failures)
    known = finished | {failure.id for failure in results.failures}
    missing: dict[str, list[Trial]] = defaultdict(list)
    for trial in results.planned:
        if trial.id not in known:
            missing["/".join(trial.cell)].append(trial)
    for cell, trials in sorted(missing.items()):
        yield f"{cell}: not run, seed {named(trials)}.", ()


@rule("FAIR-22", "W", over="records")
def not_collapsed(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Collapse and divergence are noticed.

    An embedding that has shrunk to a point, or a loss that is no number any more, is a failed training: its score
    says nothing of the method and must not pass as a weak result.
    """
    for record in results.tested:
        if record.level == "floor":
            continue
        signs = [*_shrunk(record), *_scores(record)]
        if signs:
            yield f"{cell_of(record)} {record.trial.seed_and_fold}: {'; '.join(signs)}.", (record.id,)
    finished = {record.id for record in results.records}
    for failure in results.failures:
        if failure.kind == "diverged" and failure.id not in finished:
            cell = f"{'/'.join(failure.trial.cell)} {failure.trial.seed_and_fold}"
            yield f"{cell}: diverged: {_first_line(failure.reason)}.", (failure.id,)


def _shrunk(record: Record) -> Iterator[str]:
    """Where the spread of the embeddings fell below what a working network has, and stayed there to the end."""
    least = COLLAPSED / math.sqrt(record.trial.model.dim)
    spreads = [(f" from epoch {epoch.epoch}", epoch.spread) for epoch in _trained(record) if epoch.spread]
    spreads = spreads or [("", record.test_spread)]
    for name, bound, digits in (("embedding std", least, ".0e"), ("effective rank", ONE_DIRECTION, ".2f")):
        since, value = None, math.nan
        for when, spread in spreads:
            low = spread.get(name, math.inf) < bound
            since, value = (since or when, spread[name]) if low else (None, math.nan)
        if not math.isnan(value):
            yield f"{name} {_exponent(f'{value:{digits}}')}{since}: collapsed"


def _trained(record: Record) -> list[Epoch]:
    """The epochs of a record's training, without its starting point."""
    return [epoch for epoch in record.curve if epoch.epoch > 0]


def _scores(record: Record) -> Iterator[str]:
    """Scores that are no numbers, and a first neighbour that is right less often than by chance."""
    broken = sorted(name for name, value in record.test.items() if not math.isfinite(value))
    if broken:
        yield f"{some(broken)} not finite"
    broken = [epoch.epoch for epoch in _trained(record) if not math.isfinite(epoch.loss)]
    if broken:
        yield f"loss not finite at epoch {broken[0]}"
    images, classes = record.data.images.get("test", 0), record.data.classes.get("test", 0)
    if "R@1" in record.test and images > classes > 0:
        chance = (images / classes - 1) / (images - 1)  # of equal classes, which is the least
        if record.test["R@1"] < chance:
            yield f"R@1 {record.test['R@1']:.4f} below chance, {chance:.4f}"


@rule("FAIR-26", "W", over="records")
def above_its_start(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A trained row is not below its own starting point.

    A row that training made worse shows bad settings, not a weak method: the network scored higher before. The
    starting point is the test score of the untrained network, where it was run, and the validation score of epoch 0.
    """
    for table in results.tables:
        for arm, own in table.arms.items():
            signs = [*_below_untrained(own, table.untrained), *_below_epoch_0(own)]
            if signs:
                yield f"{table.name}/{arm}: {'; '.join(signs)}.", ids(own.values())


def _below_untrained(own: dict[int, Record], start: dict[int, Record]) -> Iterator[str]:
    """Test scores below those of the untrained network: means over the seeds both have, or over all without any."""
    both = sorted(own.keys() & start.keys())
    trained, untrained = ([some_[s] for s in both] if both else list(some_.values()) for some_ in (own, start))
    seeds = f" (seed {', '.join(map(str, both))})" if both and len(both) < len(own) else ""
    fell = []
    for metric in dict.fromkeys((*FIRST, *(name for record in trained for name in record.test))):
        now, before = (_mean(record.test.get(metric) for record in some_) for some_ in (trained, untrained))
        if now is not None and before is not None and before - now > NOISE:
            fell.append((metric, *_percent(now, before)))
    named_ = [one for one in fell if one[0] in FIRST] or fell[:1]
    if named_:
        (metric, now, before), *others = named_
        said = [f"{metric} {now} is below the untrained network's {before}"]
        yield " and ".join([*said, *(f"{m} {now} below its {before}" for m, now, before in others)]) + seeds


def _below_epoch_0(own: dict[int, Record]) -> Iterator[str]:
    """A validation score that was higher before training than at the chosen epoch, mean over seeds and folds."""
    chosen, pairs = set(), []
    for record in (part for whole in own.values() for part in whole.parts):
        scores = {epoch.epoch: epoch.validation.get(FAIR.metric) for epoch in record.curve}
        pair = scores.get(record.selected_epoch), scores.get(0)
        if None not in pair:
            chosen.add(record.selected_epoch)
            pairs.append(pair)
    now, before = (_mean(values) for values in zip(*pairs, strict=True)) if pairs else (None, None)
    if now is not None and before is not None and before - now > NOISE:
        epochs = f"epoch {min(chosen)}" if len(chosen) == 1 else f"epochs ({min(chosen)} to {max(chosen)})"
        now, before = _percent(now, before)
        yield f"validation {FAIR.metric} {now} at the chosen {epochs}, {before} before training"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None


def _percent(low: float, high: float) -> tuple[str, str]:
    """Both in percent, with as many digits as tell them apart."""
    texts = [(f"{100 * low:.{digits}f}", f"{100 * high:.{digits}f}") for digits in (1, 2, 3, 4, 8)]
    return next(pair for pair in texts if pair[0] != pair[1])


@rule("FAIR-23", "W", over="records")
def complete_provenance(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where a number comes from is complete: code, packages, weights, data, device, driver, seeds.

    A number that nobody can make again cannot be corrected either.
    """
    lacking: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        for name in _lacking(record):
            lacking[name].append(record)
    for name, records in lacking.items():
        yield f"{name} is not recorded in {_records(records)}.", ids(records)


@rule("FAIR-23", "W", over="records")
def one_state_of_the_code(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All records of a run come from one committed state of the code."""
    states: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        if any(record.provenance.get(name) for name in CODE):
            states[_state(record.provenance)].append(record)
    if len(states) > 1:
        said = ", ".join(f"{state} ({len(records)})" for state, records in states.items())
        yield f"records of {len(states)} states of the code: {said}.", ids(min(states.values(), key=len))
    changed = [record for record in results.records if record.provenance.get("uncommitted")]
    if changed:
        yield f"{_records(changed)} made with uncommitted changes, of which a digest is known.", ids(changed)


def _lacking(record: Record) -> Iterator[str]:
    origin, data = record.provenance, record.data
    if not any(origin.get(name) for name in CODE):
        yield "the revision of the code"
    elif origin.get("revision") and "uncommitted" not in origin:
        yield "whether the code had uncommitted changes"
    yield from (name.replace("_", " ") for name in ORIGINS if not origin.get(name))
    if not origin.get("initial_weights") and record.trial.arm.loss != FLOORS[1]:
        yield "initial weights"
    if record.trial.backbone.pretrained and not record.weights and record.trial.arm.loss != FLOORS[1]:
        yield "which weights were loaded"
    if "driver" not in origin:
        yield "driver"
    elif origin["driver"] == "unknown":
        yield "the driver's version"
    if not data.index_fingerprint or not data.split_fingerprint:
        yield "the fingerprint of the data"


def _state(origin: dict[str, Any]) -> str:
    name = str(origin.get("revision") or origin.get("sources"))[:10]
    return f"{name} with changes {origin['uncommitted']}" if origin.get("uncommitted") else name


def _exponent(number: str) -> str:
    """3e-07 → 3e-7"""
    return number.replace("e-0", "e-").replace("e+00", "")


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0].rstrip(".")


def _records(records: list[Record]) -> str:
    return f"{len(records)} record{'s' * (len(records) > 1)}"
