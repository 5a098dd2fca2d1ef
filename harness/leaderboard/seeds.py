"""Merge folds into seeds: under cross-validation, the score of a seed is the mean over all its folds.

The tables count training seeds. A seed with a missing or failed fold has no score, because a mean over fewer folds
covers other classes. `runs.folds` does the same with records, for the fairness rules.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import pandas

from harness.leaderboard.columns import plain
from harness.leaderboard.scores import FAILED, MISSING, PROVENANCE, of_absent

SCORED = ("value", "validation", "initial_validation", "best_test_epoch")
SUMMED = ("train_s", "wall_s", "steps", "images_seen")
EQUAL_IN_FOLDS = {  # columns that must be equal in all folds of a seed, with their names in reasons
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
    """Return both frames, scores and absent, with the folds of each seed merged.

    The scores get a column `parts`: the ids of the records behind a line, one per line. A seed with a failed fold is
    failed. A seed with a missing fold is missing, and `lacks` names the folds.
    """
    table = scores.assign(parts=scores["record"])
    if bool(scores["fold"].isna().all()) and bool(absent["fold"].isna().all()):
        return table, absent
    whole: Any = table[table["fold"].isna()]
    missing_seeds: Any = absent[absent["fold"].isna()]
    seeds, unscored = [], []
    failures = _by_trial(absent[absent["fold"].notna() & (absent["state"] == FAILED)])
    finished = _by_trial(table[table["fold"].notna()])
    for trial, lines in finished.items():
        folds: dict[int, list[Line]] = {}
        for line in lines:
            folds.setdefault(line["fold"], []).append(line)
        folds = {
            fold: [line for line in fold_lines if line["record"] == fold_lines[0]["record"]]
            for fold, fold_lines in folds.items()
        }
        n_folds = lines[0]["folds"]
        missing = [fold for fold in range(1, n_folds + 1) if fold not in folds]
        firsts = [folds[fold][0] for fold in sorted(folds)]
        if trial in failures:
            continue
        if missing:
            unscored.append({**_whole(firsts[0]), "state": MISSING, "lacks": f" ({_listed(missing)} of {n_folds})"})
        elif unlike := dict.fromkeys(
            part for name, part in EQUAL_IN_FOLDS.items() if len({first.get(name) for first in firsts}) > 1
        ):
            why = f"they differ in {' and '.join(unlike)}"
            unscored.append(
                {**_whole(firsts[0]), "state": FAILED, "kind": "unlike folds", "reason": why, "attempts": 1}
            )
        else:
            seeds += _mean([folds[fold] for fold in sorted(folds)])
    for lines in failures.values():
        lines = sorted(lines, key=lambda line: line["fold"])
        first, attempts = lines[0], max(line["attempts"] for line in lines)
        reason = f"{_listed(line['fold'] for line in lines)} of {first['folds']}: {first['reason']}"
        unscored.append({**_whole(first), "reason": reason, "attempts": attempts})
    listed_trials = {line["trial"] for line in unscored} | finished.keys()
    planned = _by_trial(absent[absent["fold"].notna() & (absent["state"] == MISSING)])
    unscored += [_whole(lines[0]) for trial, lines in planned.items() if trial not in listed_trials]
    if seeds:
        merged = pandas.DataFrame(seeds)[list(table)].astype(table.dtypes.to_dict())
        whole = pandas.concat([whole, merged], ignore_index=True)
    missing_seeds = [
        dict(zip(missing_seeds, line, strict=True))
        for line in zip(*(plain(missing_seeds[name]) for name in missing_seeds), strict=True)
    ]
    return whole, of_absent([*missing_seeds, *unscored])


def _by_trial(table: pandas.DataFrame | Any) -> dict[str, list[Line]]:
    """Return the lines of a frame by trial, each as a dict of plain values."""
    by_trial: dict[str, list[Line]] = {}
    for values in zip(*(plain(table[name]) for name in table), strict=True):
        line = dict(zip(table, values, strict=True))
        by_trial.setdefault(line["trial"], []).append(line)
    return by_trial


def _whole(line: Mapping[str, Any]) -> Line:
    """Return the line of a seed without a score, from a line of one of its folds."""
    shared = {name: value for name, value in line.items() if not name.startswith((PROVENANCE, "data."))}
    for name in ("fold", "evaluator", "weights", "weights_digest", "protocol.name", "protocol.version"):
        shared.pop(name, None)
    return {name: value for name, value in shared.items() if value is not None}


def _mean(folds: Sequence[Sequence[Line]]) -> list[Line]:
    """Return the lines of a seed from those of its folds: mean scores, total costs, largest memory.

    Values that differ between folds are left out. All training classes train and validate, so they count as training.
    """
    firsts = [lines[0] for lines in folds]
    first = firsts[0]
    line = {name: value if all(f[name] == value for f in firsts) else None for name, value in first.items()}
    total = {name: sum(f[name] for f in firsts) for name in SUMMED}
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
