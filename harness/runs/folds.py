"""Folds into seeds: the score of a seed under cross-validation is the mean over its folds, or there is none.

A cell and seed with `folds` has as many trials, each with its record. Tables, statistics and rules that compare count
training seeds: for them the records of a seed's folds become one record, whose trial is the `whole` one. A seed of
which a fold is missing or has failed has no score, whatever the others came to: a mean over fewer folds is of other
classes. Records without folds pass as they are.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from harness.config import Trial
from harness.evaluation.editions import edition_of
from harness.runs.record import Cost, Failure, Record


@dataclass(frozen=True)
class Seeds:
    """What is counted in tables: one record a cell and seed, one failure, one planned trial.

    missing   id of a whole trial → the folds that it lacks, ` (fold 2 of 4)`, where others have run
    """

    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    planned: tuple[Trial, ...]
    missing: dict[str, str]


def by_seed(records: Iterable[Record], failures: Iterable[Failure] = (), planned: Iterable[Trial] = ()) -> Seeds:
    """Records, failures and planned trials with those of a seed's folds as one, each kind in the order given.

    A seed of whose folds one has failed is a failure; one that lacks a fold is planned and `missing`.
    """
    finished: dict[str, dict[int, Record]] = defaultdict(dict)
    kept: list[Record] = []
    for record in records:
        if record.trial.fold is None:
            kept.append(record)
        else:
            finished[record.trial.whole.id].setdefault(record.trial.fold, record)
    lost: dict[str, dict[int, Failure]] = defaultdict(dict)
    alone = []
    for failure in failures:
        if failure.trial.fold is None:
            alone.append(failure)
        elif failure.trial.fold not in finished.get(whole := failure.trial.whole.id, ()):
            lost[whole][failure.trial.fold] = failure
    wholes = {trial.whole.id: trial.whole for trial in planned}
    missing = {}
    for whole, some in finished.items():
        trial = next(iter(some.values())).trial.whole
        if whole in lost:
            continue
        if lacking := [fold for fold in range(1, trial.folds + 1) if fold not in some]:
            wholes[whole], missing[whole] = trial, f" ({_listed(lacking)} of {trial.folds})"
        elif unlike := _unlike(some.values()):
            alone.append(_failed(some, "unlike folds", f"they differ in {unlike}"))
        else:
            kept.append(mean([some[fold] for fold in sorted(some)]))
    for some in lost.values():
        first = some[min(some)]
        reason = f"{_listed(some)} of {first.trial.folds}: {first.reason}"
        alone.append(_failed(some, first.kind, reason, max(failure.attempts for failure in some.values())))
    return Seeds(tuple(kept), tuple(alone), tuple(wholes.values()), missing)


def mean(folds: Sequence[Record]) -> Record:
    """The record of a seed from those of all its folds: scores are means, costs add up, `folds` are these records.

    What differs between folds is left to them: curve, epoch, weights. All training classes train and validate, so
    they are one part, "train". The fingerprint of the split is that of all folds' in order.
    """
    first, data = folds[0], folds[0].data
    origin = first.provenance
    shared = [key for key in origin if all(fold.provenance.get(key) == origin[key] for fold in folds)]
    return first.model_copy(
        update={
            "id": first.trial.whole.id,
            "trial": first.trial.whole,
            "selected_epoch": None,
            "validation": _means([fold.validation for fold in folds]),
            "test": _means([fold.test for fold in folds]),
            "test_spread": _means([fold.test_spread for fold in folds]),
            "test_checkpoints": max(fold.test_checkpoints for fold in folds),
            "curve": (),
            "cost": _sum([fold.cost for fold in folds]),
            "data": data.model_copy(
                update={
                    "images": _undivided(data.images),
                    "classes": _undivided(data.classes),
                    "split_fingerprint": sha256(
                        "".join(f.data.split_fingerprint for f in folds).encode()
                    ).hexdigest(),
                }
            ),
            "analysis": {},
            "provenance": {key: origin[key] for key in shared},
            "notes": tuple(dict.fromkeys(note for fold in folds for note in fold.notes)),
            "finished": max(fold.finished for fold in folds),
            "folds": tuple(folds),
        }
    )


def named(trials: Iterable[Trial]) -> str:
    """The seeds of trials of one cell, each with its folds unless all are there: `0, 1 (fold 2 of 4)`."""
    folds: dict[int, set[int | None]] = defaultdict(set)
    of = {}
    for trial in trials:
        folds[trial.seed].add(trial.fold)
        of[trial.seed] = trial.folds
    return ", ".join(
        f"{seed}" + ("" if None in some or len(some) == of[seed] else f" ({_listed(some)} of {of[seed]})")
        for seed, some in sorted(folds.items())
    )


def _unlike(folds: Iterable[Record]) -> str:
    """In what folds differ that may not be averaged over: protocol, evaluator, data, weights to begin with."""
    values: dict[str, list[Any]] = defaultdict(list)
    for fold in folds:
        values["protocol"].append(fold.protocol)
        values["the evaluator"].append(edition_of(fold.provenance.get("evaluator")))
        data = fold.data
        values["the data"].append((data.index_fingerprint, data.pixel_fingerprint, data.content_fingerprint))
        values["the network's weights"].append((fold.weights, fold.provenance.get("initial_weights")))
    return " and ".join(what for what, some in values.items() if any(value != some[0] for value in some))


def _failed(folds: dict[int, Record] | dict[int, Failure], kind: str, reason: str, attempts: int = 1) -> Failure:
    """The failure of a seed, in place of those of its folds."""
    trial, last = next(iter(folds.values())).trial.whole, max(fold.finished for fold in folds.values())
    return Failure(
        id=trial.id, trial=trial, arm=trial.arm.label, kind=kind, reason=reason, attempts=attempts, finished=last
    )


def _means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each score that all have."""
    return {
        name: math.fsum(some[name] for some in scores) / len(scores)
        for name in scores[0]
        if all(name in some for some in scores)
    }


def _sum(costs: Sequence[Cost]) -> Cost:
    """What all folds took: times, steps and images add up, passes are those of a mean step, memory is the largest."""
    total = {
        name: sum(getattr(cost, name) for cost in costs)
        for name in ("train_s", "checkpoint_s", "wall_s", "steps", "images_seen")
    }
    seen = total["images_seen"]
    passes = [cost.forward_passes_per_step * (cost.images_seen / seen if seen else 1 / len(costs)) for cost in costs]
    return costs[0].model_copy(
        update={
            **total,
            "images_per_s": seen / total["train_s"] if total["train_s"] else None,
            "forward_passes_per_step": math.fsum(passes),
            "attempt_s": _total([cost.attempt_s for cost in costs]),
            "peak_gb": max((cost.peak_gb for cost in costs if cost.peak_gb is not None), default=None),
        }
    )


def _total(values: Sequence[float | None]) -> float | None:
    """The sum; None where one is not known."""
    return None if None in values else math.fsum(values)


def _undivided(counts: dict[str, int]) -> dict[str, int]:
    """Counts by split, with those of validation among those of training."""
    train = counts.get("train", 0) + counts.get("validation", 0)
    return {"train": train, **{name: n for name, n in counts.items() if name not in ("train", "validation")}}


def _listed(folds: Iterable[int]) -> str:
    folds = sorted(folds)
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
