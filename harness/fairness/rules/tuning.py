"""Rules about tuning: all arms are searched with equal budgets, in spaces that are fixed beforehand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.fairness.rules import Study, rule

BORDER = 0.01  # share of a range (of its logarithm, if searched so) that counts as its border


@rule("FAIR-06", "E", over="study")
def equal_budgets(studies: Sequence[Study]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every compared arm is tuned with the same number of trials.

    More trials find a better optimum for any arm, so a new method that is tuned for longer than its baseline wins
    because of the search.
    """
    places: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        places[study.place].append(study)
    for place, compared in places.items():
        if len({study.trials for study in compared}) > 1:
            budgets = ", ".join(f"{s.arm}: {s.trials}" + (" trials" if s is compared[0] else "") for s in compared)
            yield f"{place}: {budgets}.", ()
    for study in studies:
        if study.chosen is not None and study.made < study.trials:
            yield f"{study.place}/{study.arm}: settings chosen after {study.made} of {study.trials} trials.", ()


@rule("FAIR-09", "E", over="study")
def space_declared(studies: Sequence[Study]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A search space is declared beforehand and does not change within a study.

    Widening a space after seeing the scores is a manual search that no budget counts.
    """
    for study in studies:
        name = f"{study.place}/{study.arm}"
        if not study.declared:
            yield f"{name}: no search space was declared.", ()
        for key in sorted({*study.declared, *study.space}):
            before, now = study.declared.get(key), study.space.get(key)
            if study.declared and before != now:
                yield f"{name}: the space of {key} was {_range(before)} and is now {_range(now)}.", ()
        outside = {
            (key, value)
            for settings in study.tried
            for key, value in settings.items()
            if key in study.declared and value != study.defaults.get(key) and not _inside(value, study.declared[key])
        }
        for key, value in sorted(outside, key=str):
            yield f"{name}: {key} = {_plain(value)} was tried, outside its space {_range(study.declared[key])}.", ()
        for settings in study.used:
            if study.chosen is not None and (
                key := next((k for k in settings if settings[k] != study.chosen[k]), "")
            ):
                chosen = f"the search chose {_plain(study.chosen[key])}"
                yield f"{name}: {key} = {_plain(settings[key])} was used, but {chosen}.", ()
                break


@rule("FAIR-10", "W", over="study")
def optimum_inside(studies: Sequence[Study]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A tuned optimum is not on the border of its space.

    The best value may be outside, so the space may be too narrow for this arm. Choices have a border only if they are
    more than two numbers.
    """
    for study in studies:
        for key, value in (study.chosen or {}).items():
            space = _as_range(study.declared.get(key, {}))
            if "low" not in space or not _inside(value, space):
                continue
            for side, bound in (("lower", space["low"]), ("upper", space["high"])):
                if abs(_place(value, space) - _place(bound, space)) <= BORDER:
                    yield f"{study.place}/{study.arm}: {key} = {value:.4g} at the {side} bound {bound:g}.", ()


def _as_range(space: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a space with bounds, which are those of its choices if these are more than two numbers."""
    choices = space.get("choices", ())
    ordered = len(choices) > 2 and all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices)
    return {"low": min(choices), "high": max(choices)} if ordered else space


def _inside(value: Any, space: Mapping[str, Any]) -> bool:
    if "choices" in space:
        return value in space["choices"]
    return space["low"] <= value <= space["high"]


def _place(value: float, space: Mapping[str, Any]) -> float:
    """Return the position of a value in its range, 0 at the lower and 1 at the upper bound."""
    low, high = space["low"], space["high"]
    if space.get("log"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _range(space: Mapping[str, Any] | None) -> str:
    if space is None:
        return "not searched"
    if "choices" in space:
        return "{" + ", ".join(map(_plain, space["choices"])) + "}"
    return f"[{space['low']:g}, {space['high']:g}]{' in logarithm' if space.get('log') else ''}"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
