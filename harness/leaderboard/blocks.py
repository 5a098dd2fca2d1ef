"""Which lines may be compared: one block holds one dataset, one backbone and one value of every shared factor.

Whatever differs goes to a block of its own, with the differing factors named (FAIR-08, FAIR-25). Floors join every
block whose data and network they fit. A trial without a record does not know its data and evaluator: it joins the
largest block that its settings fit.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from harness.leaderboard.columns import lines, plain
from harness.leaderboard.scores import FAILED, REFUSED, factors

STEPS = ("lr", "schedule", "step_epochs", "gamma")  # shared by a loss and its variants, not by other losses
OF_RECORDS = (
    *("record", "parts", "dataset", "backbone", "arm", "baseline", "level", "seed", "tuned", *STEPS, "train_s"),
    *("forward_passes_per_step", "peak_gb", "parameters"),
)
OF_ABSENT = (
    *("record", "dataset", "backbone", "arm", "baseline", "level", "seed", "tuned", *STEPS),
    *("state", "kind", "reason", "attempts", "lacks"),
)
Place = tuple[str, str]


@dataclass
class Comparable:
    """What stands in one block: (dataset, backbone), the factors as far as they are known, seeds of arms in order.

    `entries` are lines of the scores, one per record, or of what is absent; `refused` the arms without a Metrix form
    with the reason. `differing` are the factors that tell it from other blocks of its place.
    """

    place: Place
    factors: dict[str, Any]
    entries: list[Any] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    differing: dict[str, Any] = field(default_factory=dict)


def arrange(seeds: pandas.DataFrame, absent: pandas.DataFrame) -> list[Comparable]:
    """Return the blocks of these seeds in the order of the tables: by place, the largest first.

    seeds, absent: the frames as `by_seed` gives them.
    """
    records = seeds.drop_duplicates("record").sort_values("record", kind="stable")
    measured = list(zip(lines(records, OF_RECORDS), _known(records), strict=True))
    lost = absent[absent["state"] != REFUSED].assign(record=None)
    order = (lost["state"] != FAILED).astype(int).astype(str) + lost["trial"]
    lost = lost.loc[order.sort_values(kind="stable").index]
    unmeasured = list(zip(lines(lost, OF_ABSENT), _known(lost), strict=True))
    blocks: dict[tuple, Comparable] = {}
    for entry, known in measured:
        if entry.level != "floor":
            blocks.setdefault(_key(entry, known), Comparable(_place(entry), known)).entries.append(entry)
    for entry, known in unmeasured:
        if entry.level != "floor":
            home = max(_fitting(blocks.values(), entry, known), key=lambda block: len(block.entries), default=None)
            if home is None:
                home = blocks[_key(entry, known)] = Comparable(_place(entry), known)
            home.entries.append(entry)
    _place_floors([one for one in (*measured, *unmeasured) if one[0].level == "floor"], blocks)
    found = sorted(blocks.values(), key=lambda block: (block.place, -len(block.entries), _json(block.factors)))
    for block in found:
        block.differing = _differing(block, found)
    return found + _without_form(absent, found)


def _known(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """The shared factors of each line; equal ones are one dict."""
    names = sorted(factors(table))
    kept: dict[tuple, dict[str, Any]] = {}
    found = []
    for values in zip(*(plain(table[name]) for name in names), strict=True):
        if values not in kept:
            kept[values] = {
                n: v for n, v in zip(names, values, strict=True) if v is not None or n != "weights_digest"
            }
        found.append(kept[values])
    return found if names else [{}] * len(table)


def _place(entry: Any) -> Place:
    return entry.dataset, entry.backbone


def _json(known: dict[str, Any]) -> str:
    return json.dumps(known, sort_keys=True, default=str)


def _key(entry: Any, known: dict[str, Any]) -> tuple:
    return _place(entry), tuple(known.items())


def _fitting(blocks: Iterable[Comparable], entry: Any, known: dict[str, Any]) -> list[Comparable]:
    here = [block for block in blocks if block.place == _place(entry)]
    return [block for block in here if all(block.factors.get(name, value) == value for name, value in known.items())]


def _place_floors(floors: Sequence[tuple[Any, dict[str, Any]]], blocks: dict[Any, Comparable]) -> None:
    """Put each floor into every block that its data and network fit; one of the same training goes before others."""
    for exact in (True, False):
        for entry, known in floors:
            known = {name: value for name, value in known.items() if exact or not name.startswith("training.")}
            known.pop("weights", None)  # their digest counts
            homes = _fitting(blocks.values(), entry, known)
            if not homes and not exact:
                homes = [blocks.setdefault(_key(entry, known), Comparable(_place(entry), known))]
            for home in homes:
                if not any((other.arm, other.seed) == (entry.arm, entry.seed) for other in home.entries):
                    home.entries.append(entry)


def _differing(block: Comparable, blocks: Sequence[Comparable]) -> dict[str, Any]:
    """The factors in which blocks of the same dataset and backbone differ, where this one knows them."""
    others = [other.factors for other in blocks if other.place == block.place]
    return {
        name: value
        for name, value in sorted(block.factors.items())
        if any(other.get(name, value) != value for other in others)
    }


def _without_form(absent: pandas.DataFrame, blocks: Sequence[Comparable]) -> list[Comparable]:
    """Give each block the arms of its place that have no Metrix form; the blocks of places that have nothing else."""
    further: dict[Place, Comparable] = {}
    for line in lines(absent[absent["state"] == REFUSED], ("dataset", "backbone", "arm", "reason")):
        homes = [block for block in blocks if block.place == _place(line)]
        for home in homes or [further.setdefault(_place(line), Comparable(_place(line), {}))]:
            home.refused.append((line.arm, line.reason))
    return [further[place] for place in sorted(further)]
