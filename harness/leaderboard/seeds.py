"""Folds into seeds: under cross-validation the score of a seed is the mean over all its folds, or there is none.

The tables count training seeds. A seed of which a fold is missing or has failed has no score, whatever the others
scored: a mean over fewer folds is of other classes. `runs.folds` does the same to records, for the fairness rules.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import pandas

from harness.leaderboard.columns import plain
from harness.leaderboard.scores import FAILED, MISSING, PROVENANCE, of_absent

SCORED = ("value", "validation", "initial_validation", "best_test_epoch")
ADDED_UP = ("train_s", "wall_s", "steps", "images_seen")
ALIKE = {  # columns that the folds of a seed must agree in, and what a reader calls them
    "protocol.name": "protocol",
    "protocol.version": "protocol",
    "evaluator": "the evaluator",
    "data.index_fingerprint": "the data",
    "data.pixel_fingerprint": "the data",
    "content_fingerprint": "the data",
    "weights": "the network's weights",
    "provenance.initial_weights": "the network's weights",
}

Line = dict[str, Any]


def by_seed(scores: pandas.DataFrame, absent: pandas.DataFrame) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return both frames with the folds of each seed as one: scores, and what has none.

    The scores get a column `parts`: the ids of the records behind a line, one a line. A seed of which a fold has
    failed is failed; one that lacks a fold is missing, and `lacks` names the folds.
    """
    table = scores.assign(parts=scores["record"])
    if bool(scores["fold"].isna().all()) and bool(absent["fold"].isna().all()):
        return table, absent
    whole: Any = table[table["fold"].isna()]
    lost: Any = absent[absent["fold"].isna()]
    seeds, without = [], []
    failures = _by_trial(absent[absent["fold"].notna() & (absent["state"] == FAILED)])
    finished = _by_trial(table[table["fold"].notna()])
    for trial, lines in finished.items():
        folds: dict[int, list[Line]] = {}
        for line in lines:
            folds.setdefault(line["fold"], []).append(line)
        folds = {fold: [line for line in own if line["record"] == own[0]["record"]] for fold, own in folds.items()}
        of = lines[0]["folds"]
        missing = [fold for fold in range(1, of + 1) if fold not in folds]
        firsts = [folds[fold][0] for fold in sorted(folds)]
        if trial in failures:
            continue
        if missing:
            without.append({**_whole(firsts[0]), "state": MISSING, "lacks": f" ({_listed(missing)} of {of})"})
        elif unlike := dict.fromkeys(what for name, what in ALIKE.items() if len({f.get(name) for f in firsts}) > 1):
            why = f"they differ in {' and '.join(unlike)}"
            without.append(
                {**_whole(firsts[0]), "state": FAILED, "kind": "unlike folds", "reason": why, "attempts": 1}
            )
        else:
            seeds += _mean([folds[fold] for fold in sorted(folds)])
    for lines in failures.values():
        lines = sorted(lines, key=lambda line: line["fold"])
        first, attempts = lines[0], max(line["attempts"] for line in lines)
        reason = f"{_listed(line['fold'] for line in lines)} of {first['folds']}: {first['reason']}"
        without.append({**_whole(first), "reason": reason, "attempts": attempts})
    known = {line["trial"] for line in without} | finished.keys()
    planned = _by_trial(absent[absent["fold"].notna() & (absent["state"] == MISSING)])
    without += [_whole(lines[0]) for trial, lines in planned.items() if trial not in known]
    if seeds:
        merged = pandas.DataFrame(seeds)[list(table)].astype(table.dtypes.to_dict())
        whole = pandas.concat([whole, merged], ignore_index=True)
    lost = [dict(zip(lost, line, strict=True)) for line in zip(*(plain(lost[name]) for name in lost), strict=True)]
    return whole, of_absent([*lost, *without])


def _by_trial(table: pandas.DataFrame | Any) -> dict[str, list[Line]]:
    """The lines of a frame by their trial, each as a dict of plain values."""
    found: dict[str, list[Line]] = {}
    for values in zip(*(plain(table[name]) for name in table), strict=True):
        line = dict(zip(table, values, strict=True))
        found.setdefault(line["trial"], []).append(line)
    return found


def _whole(line: Mapping[str, Any]) -> Line:
    """What a seed without a score keeps of a line of one of its folds."""
    kept = {name: value for name, value in line.items() if not name.startswith((PROVENANCE, "data."))}
    for name in ("fold", "evaluator", "weights", "weights_digest", "protocol.name", "protocol.version"):
        kept.pop(name, None)
    return {name: value for name, value in kept.items() if value is not None}


def _mean(folds: Sequence[Sequence[Line]]) -> list[Line]:
    """The lines of a seed from those of all its folds: scores are means, costs add up, memory is the largest.

    What differs between folds is left out. All training classes train and validate, so they count as training.
    """
    firsts = [lines[0] for lines in folds]
    first = firsts[0]
    line = {name: value if all(f[name] == value for f in firsts) else None for name, value in first.items()}
    total = {name: sum(f[name] for f in firsts) for name in ADDED_UP}
    seen = total["images_seen"]
    shares = [f["images_seen"] / seen if seen else 1 / len(firsts) for f in firsts]
    line |= {
        **total,
        "record": first["trial"],
        "parts": "\n".join(f["record"] for f in firsts),
        "arm": first["arm"],
        "fold": None,
        "selected_epoch": None,
        "forward_passes_per_step": math.fsum(
            f["forward_passes_per_step"] * share for f, share in zip(firsts, shares, strict=True)
        ),
        "peak_gb": max((f["peak_gb"] for f in firsts if f["peak_gb"] is not None), default=None),
        "data.split_fingerprint": sha256("".join(f["data.split_fingerprint"] for f in firsts).encode()).hexdigest(),
        "notes": "\n".join(dict.fromkeys(note for f in firsts for note in (f["notes"] or "").splitlines())) or None,
        "finished": max(f["finished"] for f in firsts),
    }
    for what in ("images", "classes"):
        counts = first[f"train_{what}"], first[f"validation_{what}"]
        line |= {f"train_{what}": sum(count or 0 for count in counts), f"validation_{what}": None}
    by_metric = [{own["metric"]: own for own in lines} for lines in folds]
    shared = [metric for metric in by_metric[0] if all(metric in own for own in by_metric)]
    return [
        {**line, "metric": metric, **{name: _average([own[metric][name] for own in by_metric]) for name in SCORED}}
        for metric in shared
    ]


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _listed(folds: Iterable[int]) -> str:
    folds = sorted(folds)
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
