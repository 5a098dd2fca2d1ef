"""Rules about outcomes: missing, failed, collapsed and worsened trials are shown, and all can be traced."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.config import PIXELS
from harness.errors import first_few
from harness.evaluation import NOISE
from harness.fairness.protocols import FAIR
from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import cell_of, counted, ids
from harness.runs.folds import named

if TYPE_CHECKING:
    from harness.config import Trial
    from harness.runs.record import Epoch, Failure, Record

COLLAPSED = 0.01  # times √(1/d), the embedding std when directions are spread evenly
ONE_DIRECTION = 1.5  # effective rank below which a single direction dominates the embedding
FIRST = ("R@1", "MAP@R")  # the scores that are named first if they fell
EXPLAINED = ("error", "refused")  # kinds of failures that only the reason explains
CODE = ("revision", "sources")
ORIGINS = ("packages", "device", "tested_weights", "evaluator")


@rule("FAIR-20", "W", over="records")
def failed_are_shown(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Missing and failed cells are shown with state and reason.

    A table without the trials that crashed or diverged shows only the better results of a method.
    """
    finished = {record.id for record in results.records}
    failed: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in results.failures:
        if failure.id not in finished:
            times = f"failed {failure.attempts}x" if failure.attempts > 1 else "failed"
            why = failure.kind if failure.kind not in EXPLAINED else _first_line(failure.reason)
            failed["/".join(failure.trial.cell), f"{times} ({why})"].append(failure)
    for (cell, outcome), failures in sorted(failed.items()):
        yield (
            f"{cell}: {outcome}, seed {named(f.trial for f in failures)}.",
            tuple(failure.id for failure in failures),
        )
    known = finished | {failure.id for failure in results.failures}
    missing: dict[str, list[Trial]] = defaultdict(list)
    for trial in results.planned:
        if trial.id not in known:
            missing["/".join(trial.cell)].append(trial)
    for cell, trials in sorted(missing.items()):
        yield f"{cell}: not run, seed {named(trials)}.", ()


@rule("FAIR-22", "W", over="records")
def not_collapsed(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Collapse and divergence are detected.

    An embedding that has shrunk to a point, or a loss that is not finite, means that training failed. Its score says
    nothing about the method and must not pass as a weak result.
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
    """Yield from which epoch to the end the spread of the embeddings is below that of a working network."""
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
    """Return the epochs of a record's training, without its starting point."""
    return [epoch for epoch in record.curve if epoch.epoch > 0]


def _scores(record: Record) -> Iterator[str]:
    """Yield scores and losses that are not finite, and R@1 below chance."""
    broken = sorted(name for name, value in record.test.items() if not math.isfinite(value))
    if broken:
        yield f"{first_few(broken)} not finite"
    broken = [epoch.epoch for epoch in _trained(record) if epoch.loss is not None and not math.isfinite(epoch.loss)]
    if broken:
        yield f"loss not finite at epoch {broken[0]}"
    images, classes = record.data.images.get("test", 0), record.data.classes.get("test", 0)
    if "R@1" in record.test and images > classes > 0:
        chance = (images / classes - 1) / (images - 1)  # with classes of equal size, where it is lowest
        if record.test["R@1"] < chance:
            yield f"R@1 {record.test['R@1']:.4f} below chance, {chance:.4f}"


@rule("FAIR-26", "W", over="records")
def above_its_start(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A trained row is not below its own starting point.

    A network that scored higher before training shows bad settings, not a weak method. The starting point is the test
    score of the untrained network, if it was run, and the validation score of epoch 0.
    """
    for table in results.tables:
        for arm, own in table.arms.items():
            signs = [*_below_untrained(own, table.untrained), *_below_epoch_0(own)]
            if signs:
                yield f"{table.name}/{arm}: {'; '.join(signs)}.", ids(own.values())


def _below_untrained(own: dict[int, Record], start: dict[int, Record]) -> Iterator[str]:
    """Yield test scores below those of the untrained network, as means over common seeds (over all if none)."""
    both = sorted(own.keys() & start.keys())
    trained, untrained = ([each[s] for s in both] if both else list(each.values()) for each in (own, start))
    seeds = f" (seed {', '.join(map(str, both))})" if both and len(both) < len(own) else ""
    fell = []
    for metric in dict.fromkeys((*FIRST, *(name for record in trained for name in record.test))):
        now, before = (_mean(record.test.get(metric) for record in each) for each in (trained, untrained))
        if now is not None and before is not None and before - now > NOISE:
            fell.append((metric, *_percent(now, before)))
    shown = [each for each in fell if each[0] in FIRST] or fell[:1]
    if shown:
        (metric, now, before), *others = shown
        first = [f"{metric} {now} is below the untrained network's {before}"]
        yield " and ".join([*first, *(f"{m} {now} below its {before}" for m, now, before in others)]) + seeds


def _below_epoch_0(own: dict[int, Record]) -> Iterator[str]:
    """Yield a validation score that was higher before training than at the chosen epoch, as a mean over trials."""
    chosen, pairs = set(), []
    for record in (part for whole in own.values() for part in whole.parts):
        if record.selected_epoch is None:
            continue
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
    """Return both in percent, with enough digits to tell them apart."""
    texts = [(f"{100 * low:.{digits}f}", f"{100 * high:.{digits}f}") for digits in (1, 2, 3, 4, 8)]
    return next(pair for pair in texts if pair[0] != pair[1])


@rule("FAIR-23", "W", over="records")
def complete_provenance(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The origin of a number is complete: code, packages, weights, data, device, driver, seeds.

    A number that cannot be reproduced cannot be corrected.
    """
    lacking: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        for name in _lacking(record):
            lacking[name].append(record)
    for name, records in lacking.items():
        yield f"{name} is not recorded in {counted(records)}.", ids(records)


@rule("FAIR-23", "W", over="records")
def one_state_of_the_code(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All records of a run come from one committed state of the code."""
    states: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        if any(record.provenance.get(name) for name in CODE):
            states[_state(record.provenance)].append(record)
    if len(states) > 1:
        listed = ", ".join(f"{state} ({len(records)})" for state, records in states.items())
        yield f"records of {len(states)} states of the code: {listed}.", ids(min(states.values(), key=len))
    changed = [record for record in results.records if record.provenance.get("uncommitted")]
    if changed:
        yield f"{counted(changed)} made with uncommitted changes, of which a digest is known.", ids(changed)


def _lacking(record: Record) -> Iterator[str]:
    origin, data = record.provenance, record.data
    if not any(origin.get(name) for name in CODE):
        yield "the revision of the code"
    elif origin.get("revision") and "uncommitted" not in origin:
        yield "whether the code had uncommitted changes"
    yield from (name.replace("_", " ") for name in ORIGINS if not origin.get(name))
    if not origin.get("initial_weights") and record.trial.arm.loss != PIXELS:
        yield "initial weights"
    if record.trial.backbone.pretrained and not record.weights and record.trial.arm.loss != PIXELS:
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
