"""Which numbers may be compared: the one place that decides what may share a table (FAIR-08, FAIR-25).

Everything but the method must be equal: dataset, backbone and every factor of `factors_of`. The leaderboard makes its
blocks with `comparable_tables`, the rules check the same tables, and a run folder accepts only trials that may share
a table with its records (`conflicts`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from harness.config import Trial
from harness.evaluation.editions import edition_of
from harness.runs.record import Record

Place = tuple[str, str]  # dataset, backbone
T = TypeVar("T")


def place_of(trial: Trial) -> Place:
    """Return (dataset, backbone) of a trial."""
    return trial.dataset.name, trial.backbone.name


def factors_of(record: Record) -> dict[str, Any]:
    """Return every factor that must be equal for two numbers to share a table, by name."""
    data, origin = record.data, record.provenance
    factors = {"folds": None, **record.trial.shared}
    factors |= {f"protocol.{key}": value for key, value in record.protocol.items()}
    factors |= {"evaluator": edition_of(origin.get("evaluator")), "weights": record.weights}
    for name in ("index_fingerprint", "pixel_fingerprint", "split_fingerprint"):
        factors[f"data.{name}"] = getattr(data, name)
    if record.trial.backbone.pretrained:
        factors["weights_digest"] = origin.get("initial_weights")
    return factors


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One seed of an arm, as it enters a table; `of` is what it stands for, such as its record.

    `factors` are those of `factors_of`, as far as they are known: without a record (`measured` is False) only those
    that the trial's settings determine. `arm` and `level` are those of the record, which an older version may
    have named differently than the trial does. `seed` is None for an arm whose level has no form for the loss.
    """

    place: Place
    arm: str
    level: str
    seed: int | None
    factors: dict[str, Any]
    measured: bool
    of: T


@dataclass
class Comparable(Generic[T]):
    """Entries that may share a table: one dataset, one backbone, one value of every factor."""

    place: Place
    factors: dict[str, Any]
    entries: list[Entry[T]] = field(default_factory=list)

    def accepts(self, place: Place, factors: Mapping[str, Any]) -> bool:
        """Return whether nothing contradicts this table; factors that it does not know are accepted."""
        return self.place == place and all(self.factors.get(key, value) == value for key, value in factors.items())


def comparable_tables(entries: Iterable[Entry[T]]) -> list[Comparable[T]]:
    """Group entries into tables of comparable numbers, ordered by place and then by size, the largest first.

    Entries without a record know neither their data nor their evaluator: they join the largest table that accepts
    their settings. A floor is not trained, so it joins every table that accepts it apart from training settings; only
    the digest of its weights counts, not their name. For each arm and seed, a floor with equal training settings is
    preferred.
    """
    entries = list(entries)
    tables: dict[tuple[Place, str], Comparable[T]] = {}
    trained = [entry for entry in entries if entry.level != "floor"]
    for entry in (entry for entry in trained if entry.measured):
        _table_of(entry.place, entry.factors, tables).entries.append(entry)
    for entry in (entry for entry in trained if not entry.measured):
        accepting = [table for table in tables.values() if table.accepts(entry.place, entry.factors)]
        table = max(accepting, key=lambda table: len(table.entries), default=None)
        (table or _table_of(entry.place, entry.factors, tables)).entries.append(entry)
    _add_floors([entry for entry in entries if entry.level == "floor"], tables)
    return sorted(tables.values(), key=lambda table: (table.place, -len(table.entries), _key(table.factors)))


def _table_of(place: Place, factors: dict[str, Any], tables: dict[tuple[Place, str], Comparable[T]]) -> Comparable[T]:
    """Return the table with these factors, added to `tables` if there is none yet."""
    return tables.setdefault((place, _key(factors)), Comparable(place, factors))


def _add_floors(floors: Sequence[Entry[T]], tables: dict[tuple[Place, str], Comparable[T]]) -> None:
    for same_training in (True, False):
        for entry in floors:
            factors = {k: v for k, v in entry.factors.items() if same_training or not k.startswith("training.")}
            factors.pop("weights", None)
            if factors.get("weights_digest") is None:  # raw pixels cross no network
                factors.pop("weights_digest", None)
            accepting = [table for table in tables.values() if table.accepts(entry.place, factors)]
            if not accepting and not same_training:
                accepting = [_table_of(entry.place, factors, tables)]
            for table in accepting:
                if not any((e.arm, e.seed) == (entry.arm, entry.seed) for e in table.entries):
                    table.entries.append(entry)


def _key(factors: Mapping[str, Any]) -> str:
    return json.dumps(factors, sort_keys=True, default=str)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of the factors in which two tables differ, in order."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]


def distinguishing(table: Comparable[T], tables: Iterable[Comparable[T]]) -> tuple[tuple[str, Any], ...]:
    """Return the factors, with their values, that tell `table` from the other tables of its dataset and backbone.

    A factor that one of two tables does not know does not tell them apart.
    """
    others = [other for other in tables if other.place == table.place]
    return tuple(
        (key, value)
        for key, value in sorted(table.factors.items())
        if any(other.factors.get(key, value) != value for other in others)
    )


def conflicts(records: Iterable[Record], trials: Iterable[Trial]) -> list[str]:
    """Return why these trials may not join these records in one folder: one sentence for each difference.

    They may not if two results share cell, seed and fold, or if two values of a factor would meet in one table.
    """
    counts = _differences((record.trial for record in records), trials)
    return [f"{sentence} ({n} record{'s' * (n > 1)})" for sentence, n in counts.items()]


def differences(before: Iterable[Trial], trials: Iterable[Trial]) -> list[str]:
    """Return the differences between trials as they were planned before and as they are planned now, as sentences."""
    return list(_differences(before, trials))


def _differences(before: Iterable[Trial], trials: Iterable[Trial]) -> dict[str, int]:
    """Return each difference and how often it occurs."""
    planned = {(*trial.cell, trial.seed, trial.fold): trial for trial in trials}
    tables = {trial.cell[:2]: trial for trial in planned.values()}
    counts: dict[str, int] = {}
    for trial in before:
        twin, other = planned.get((*trial.cell, trial.seed, trial.fold)), tables.get(trial.cell[:2])
        if other is not None and other.shared != trial.shared:
            old, new = trial.shared, other.shared
            pairs = [(key, old.get(key), new.get(key)) for key in differing(old, new)]
        elif twin is not None and twin.id != trial.id:
            old, new = trial.model_dump(mode="json"), twin.model_dump(mode="json")
            pairs = [(f"{trial.arm.label} {k}", old[k], new[k]) for k in ("arm", "training") if old[k] != new[k]]
        else:
            continue
        for key, was, now_is in pairs:
            sentence = f"{key} was {was} and is now {now_is}"
            counts[sentence] = counts.get(sentence, 0) + 1
    return counts
