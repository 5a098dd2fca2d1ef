"""Folds into seeds: under cross-validation, the score of a seed is the mean over all its folds.

A cell and seed with `folds` has as many trials, each with its own record. Tables, statistics and rules count training
seeds, so for them the records of a seed's folds become one record, whose trial is the `whole` one. A seed with a
missing or failed fold has no score: a mean over fewer folds would be over other classes. Records without folds are
left as they are.
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
    """What tables count: one record, failure or planned trial for each cell and seed.

    missing   id of a whole trial → its missing folds in words, ` (fold 2 of 4)`, if others have run
    """

    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    planned: tuple[Trial, ...]
    missing: dict[str, str]


def by_seed(records: Iterable[Record], failures: Iterable[Failure] = (), planned: Iterable[Trial] = ()) -> Seeds:
    """Return records, failures and planned trials with the folds of each seed combined, in the order given.

    A seed with a failed fold is a failure; a seed with a missing fold is planned and `missing`.
    """
    finished: dict[str, dict[int, Record]] = defaultdict(dict)
    kept: list[Record] = []
    for record in records:
        if record.trial.fold is None:
            kept.append(record)
        else:
            finished[record.trial.whole.id].setdefault(record.trial.fold, record)
    failed: dict[str, dict[int, Failure]] = defaultdict(dict)
    alone = []
    for failure in failures:
        if failure.trial.fold is None:
            alone.append(failure)
        elif failure.trial.fold not in finished.get(whole := failure.trial.whole.id, ()):
            failed[whole][failure.trial.fold] = failure
    wholes = {trial.whole.id: trial.whole for trial in planned}
    missing = {}
    for whole, folds in finished.items():
        trial = next(iter(folds.values())).trial.whole
        if whole in failed:
            continue
        assert trial.folds is not None  # a trial with a fold has folds
        if absent := [fold for fold in range(1, trial.folds + 1) if fold not in folds]:
            wholes[whole], missing[whole] = trial, f" ({_listed(absent)} of {trial.folds})"
        elif difference := _difference(folds.values()):
            alone.append(_failed(folds, "unlike folds", f"they differ in {difference}"))
        else:
            kept.append(mean([folds[fold] for fold in sorted(folds)]))
    for folds in failed.values():
        first = folds[min(folds)]
        reason = f"{_listed(folds)} of {first.trial.folds}: {first.reason}"
        alone.append(_failed(folds, first.kind, reason, max(failure.attempts for failure in folds.values())))
    return Seeds(tuple(kept), tuple(alone), tuple(wholes.values()), missing)


def mean(folds: Sequence[Record]) -> Record:
    """Return the record of a seed, given those of all its folds: scores are means, and costs add up.

    Curve, epoch and weights differ between folds, so only the fold records (`folds`) have them. Over all folds, every
    training class both trains and validates, so `data` counts them all as "train". The fingerprint of the split is a
    digest of the folds' fingerprints in order.
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
    """Return the seeds of trials of one cell, with their folds unless complete: `0, 1 (fold 2 of 4)`."""
    folds: dict[int, set[int]] = defaultdict(set)
    of = {}
    for trial in trials:
        folds[trial.seed] |= {each.fold for each in trial.each_fold() if each.fold}
        of[trial.seed] = trial.folds or 0
    return ", ".join(
        f"{seed}" + ("" if len(present) == of[seed] else f" ({_listed(present)} of {of[seed]})")
        for seed, present in sorted(folds.items())
    )


def _difference(folds: Iterable[Record]) -> str:
    """Return in what folds differ that may not be averaged over: protocol, evaluator, data, initial weights."""
    values: dict[str, list[Any]] = defaultdict(list)
    for fold in folds:
        values["protocol"].append(fold.protocol)
        values["the evaluator"].append(edition_of(fold.provenance.get("evaluator")))
        data = fold.data
        values["the data"].append((data.index_fingerprint, data.pixel_fingerprint, data.content_fingerprint))
        values["the network's weights"].append((fold.weights, fold.provenance.get("initial_weights")))
    return " and ".join(name for name, each in values.items() if any(value != each[0] for value in each))


def _failed(folds: dict[int, Record] | dict[int, Failure], kind: str, reason: str, attempts: int = 1) -> Failure:
    """Return the failure of a seed, in place of those of its folds."""
    trial, last = next(iter(folds.values())).trial.whole, max(fold.finished for fold in folds.values())
    return Failure(
        id=trial.id, trial=trial, arm=trial.arm.label, kind=kind, reason=reason, attempts=attempts, finished=last
    )


def _means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each score that all have."""
    return {
        name: math.fsum(each[name] for each in scores) / len(scores)
        for name in scores[0]
        if all(name in each for each in scores)
    }


def _sum(costs: Sequence[Cost]) -> Cost:
    """Return the cost of all folds: times, steps and images add up, memory is the peak."""
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
    """Return the sum; None if one value is unknown."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _undivided(counts: dict[str, int]) -> dict[str, int]:
    """Return counts by split, with validation counted as training."""
    train = counts.get("train", 0) + counts.get("validation", 0)
    return {"train": train, **{name: n for name, n in counts.items() if name not in ("train", "validation")}}


def _listed(folds: Iterable[int]) -> str:
    folds = sorted(folds)
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
