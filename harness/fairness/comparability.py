"""What may stand in one table, as the fairness rules have it (FAIR-08, FAIR-25)."""

from collections.abc import Iterable

from harness.config import Trial
from harness.runs.record import Record


def conflicts(records: Iterable[Record], trials: Iterable[Trial]) -> list[str]:
    """Why these trials may not join these records in one folder: one sentence for each difference (FAIR-08).

    Two results of one cell, seed and fold, or two values of a factor that a table must share, would make a table that
    compares unlike things.
    """
    found = _differences((record.trial for record in records), trials)
    return [f"{sentence} ({n} record{'s' * (n > 1)})" for sentence, n in found.items()]


def differences(before: Iterable[Trial], trials: Iterable[Trial]) -> list[str]:
    """The same for trials that have no records: what they were and are now."""
    return list(_differences(before, trials))


def _differences(before: Iterable[Trial], trials: Iterable[Trial]) -> dict[str, int]:
    """Each difference, and how often it occurs."""
    planned = {(*trial.cell, trial.seed, trial.fold): trial for trial in trials}
    tables = {trial.cell[:2]: trial for trial in planned.values()}
    found: dict[str, int] = {}
    for trial in before:
        twin, other = planned.get((*trial.cell, trial.seed, trial.fold)), tables.get(trial.cell[:2])
        if other is not None and other.shared != trial.shared:
            old, new = trial.shared, other.shared
            pairs = [
                (key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)
            ]
        elif twin is not None and twin.id != trial.id:
            old, new = trial.model_dump(mode="json"), twin.model_dump(mode="json")
            pairs = [(f"{trial.arm.label} {k}", old[k], new[k]) for k in ("arm", "training") if old[k] != new[k]]
        else:
            continue
        for key, was, now_is in pairs:
            sentence = f"{key} was {was} and is now {now_is}"
            found[sentence] = found.get(sentence, 0) + 1
    return found
