"""Records as a tidy DataFrame with one line per record and metric, and two smaller frames.

    scores = harness.scores("results/runs/quick")
    scores.query("metric == 'R@1'").pivot_table(index="arm", columns="dataset", values="value")

Columns are documented in `columns.SCORES`; the settings of a record follow them under dotted names (model.dim,
loss.margin, metrix.weight, rival.size, provenance.device). `absent` lists the trials without a record, `curves` has
one line per record and epoch.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from harness import registry
from harness.config import FLOORS, LEVELS, SHARED_BY_A_LOSS, Trial
from harness.fairness.comparability import factors_of
from harness.fairness.protocols import FAIR
from harness.fairness.rules import data as data_rules
from harness.leaderboard.columns import SCORES, guessed, ordered, plain, typed
from harness.runs.errors import RunError
from harness.runs.record import Failure, Record
from harness.runs.run import Run

FIRST_METRICS = ("R@1", "MAP@R", "R-Precision")
PER_METRIC = ("metric", "value", "validation", "initial_validation", "best_test_epoch")
SETTINGS = ("loss.", "metrix.", "rival.")
PROVENANCE = "provenance."
FAILED, MISSING, REFUSED = "failed", "missing", "refused"
ABSENT = {"state": "text", "kind": "text", "reason": "text", "attempts": "integer", "lacks": "text"}
TRIAL_COLUMNS = ("dataset", "backbone", "arm", "loss", "level", "baseline", "seed", "fold", "trial", "tuned")


def scores(*runs: str | Path) -> pandas.DataFrame:
    """Return the test scores of run folders or buckets, one line per record and metric, in the order of the tables.

    Scores are fractions in [0, 1]. A trial in two runs counts once. Raises RunError for a place that is not a run.
    Damaged files of a run are reported on standard error.
    """
    records: dict[str, Record] = {}
    for place in runs:
        run = Run(place, lambda sentence: print(sentence, file=sys.stderr))
        if not run.exists():
            raise RunError(f"{run.place} is not a run folder: it has no records/")
        for record in run.each_record():
            records.setdefault(record.id, record.model_copy(update={"curve": record.curve[:1]}))
    return of_records(records.values())


def of_records(records: Iterable[Record]) -> pandas.DataFrame:
    """Return the scores of records. Records without a test score (trials of a search) have no line.

    `validation` is NaN if the metric was not computed, `initial_validation` if the curve has no epoch 0.
    """
    tested = sorted((record for record in records if record.test), key=_order)
    known = {name: column.kind for name, column in SCORES.items() if name not in PER_METRIC}
    columns = _columns([_about(record) for record in tested], known)
    columns |= _categories(tested)
    values = [(place, *score) for place, record in enumerate(tested) for score in _values(record)]
    places, *measured = zip(*values, strict=True) if values else ((),) * (1 + len(PER_METRIC))
    each = {name: typed(value, SCORES[name].kind) for name, value in zip(PER_METRIC, measured, strict=True)}
    each["metric"] = ordered(measured[0], metric_order(set(measured[0])))
    table: Any = pandas.DataFrame(columns).take(list(places)).reset_index(drop=True)
    return table.assign(**each)[[*SCORES, *(name for name in columns if name not in SCORES)]]


def _order(record: Record) -> tuple[Any, ...]:
    """Return the key that sorts records as in the tables: by place, then by arm, seed and fold."""
    trial = record.trial
    arm = arm_order(record.arm, record.level, record.baseline)
    return trial.dataset.name, trial.backbone.name, arm, trial.seed, trial.fold or 0, record.id


def _categories(records: Sequence[Record]) -> dict[str, Any]:
    """Return the columns whose categories are in table order: baseline, its variants, floors last."""
    arms = sorted({(r.arm, r.level, r.baseline) for r in records}, key=lambda arm: arm_order(*arm))
    return {
        "arm": ordered([record.arm for record in records], [arm for arm, _, _ in arms]),
        "baseline": ordered([record.baseline for record in records], [baseline for *_, baseline in arms]),
        "level": ordered([record.level for record in records], levels_in_order(level for _, level, _ in arms)),
        "loss": ordered([r.trial.arm.loss for r in records], [baseline.partition("[")[0] for *_, baseline in arms]),
    }


def _columns(lines: Sequence[Mapping[str, Any]], known: Mapping[str, str]) -> dict[str, Any]:
    """Return the lines as columns: those of known kind first, then the dotted ones, family by family."""
    further = dict.fromkeys(key for line in lines for key in line if key not in known)
    columns = {name: typed([line.get(name) for line in lines], kind) for name, kind in known.items()}
    return columns | {name: guessed([line.get(name) for line in lines]) for name in sorted(further, key=_family)}


def _values(record: Record) -> Iterable[tuple[Any, ...]]:
    """Yield the values of each metric of a record, in the order of PER_METRIC."""
    initial = record.curve[0].validation if record.curve and record.curve[0].epoch == 0 else {}
    best = record.best_test_epoch or {}
    for metric in metric_order(record.test):
        value = record.test[metric]
        yield metric, value, record.validation.get(metric), initial.get(metric), best.get(metric)


def _about(record: Record) -> dict[str, Any]:
    """Return the values that all scores of a record share, by column."""
    trial, cost, data = record.trial, record.cost, record.data
    line = {
        **_of_trial(trial),
        "record": record.id,
        "trial": record.id if trial.fold is None else trial.whole.id,
        "arm": record.arm,
        "level": record.level,
        "baseline": record.baseline,
        "selected_epoch": record.selected_epoch,
        **{name: getattr(cost, name) for name in ("train_s", "wall_s", "steps", "images_seen", "peak_gb")},
        "forward_passes_per_step": cost.forward_passes_per_step,
        "parameters": cost.parameters,
        **{f"{part}_images": data.images.get(part) for part in ("train", "validation", "test")},
        **{f"{part}_classes": data.classes.get(part) for part in ("train", "validation", "test")},
        "test_queries": data.test_queries,
        "test_excluded": data.test_excluded,
        "content_fingerprint": data.content_fingerprint,
        "unlike": data_rules.unlike(record) or None,
        "notes": "\n".join(record.notes) or None,
        "grid": f"{record.grid.get('name')} {record.grid.get('version', '')}".strip(),
        "finished": record.finished,
        **_named(factors_of(record)),
    }
    for key, value in {**record.provenance, "weights": record.weights}.items():
        if value is not None:
            line[f"{PROVENANCE}{key}"] = _text(value)
    return line


def _text(value: Any) -> str:
    """Return a part of the provenance as text."""
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def _of_trial(trial: Trial) -> dict[str, Any]:
    """Return the settings of a trial by column, without the shared factors."""
    arm = trial.arm
    steps = {} if arm.at == "floor" else {name: getattr(trial.training, name) for name in SHARED_BY_A_LOSS}
    metrix = {} if arm.metrix is None else arm.metrix.model_dump()
    rival = {} if arm.rival is None else arm.rival.options
    return {
        "dataset": trial.dataset.name,
        "backbone": trial.backbone.name,
        "arm": arm.label,
        "loss": arm.loss,
        "level": arm.at,
        "baseline": arm.baseline,
        "seed": trial.seed,
        "fold": trial.fold,
        "tuned": arm.tuned is not None,
        **steps,
        **{f"loss.{name}": _setting(value) for name, value in arm.options.items()},
        **{f"metrix.{name}": _setting(value) for name, value in metrix.items()},
        **{f"rival.{name}": _setting(value) for name, value in rival.items()},
    }


def _setting(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _named(factors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shared factors by column, except dataset and backbone, which have their own columns."""
    return {
        "folds": None,
        **{key: value for key, value in factors.items() if key not in ("dataset.name", "backbone.name")},
    }


def _family(name: str) -> int:
    """Return the position of the family of a dotted column: shared factors, the loss, Metrix, rivals, provenance."""
    return next((n for n, family in enumerate((*SETTINGS, PROVENANCE), 1) if name.startswith(family)), 0)


def factors(table: pandas.DataFrame) -> list[str]:
    """Return the names of the columns that are shared factors: lines may be compared if these are equal."""
    return [name for name in table if name not in SCORES and name not in (*ABSENT, "parts") and not _family(name)]


def arm_order(arm: str, level: str, baseline: str) -> tuple[Any, ...]:
    """Return the key that sorts arms: by loss, its variants under it by level, floors last."""
    floor = FLOORS.index(baseline) if baseline in FLOORS else -1
    return floor, baseline, registry.level_order(level), arm


def levels_in_order(levels: Iterable[str]) -> tuple[str, ...]:
    """Return the levels of Metrix and these, each once: baseline, Metrix, rivals, others, floors."""
    others = {*LEVELS, *levels} - {"floor"}
    return (*sorted(others, key=lambda level: (registry.level_order(level), level)), "floor")


def metric_order(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return R@1, MAP@R, R-Precision, then R@K by K, then all other metrics."""

    def order(metric: str):
        if metric in FIRST_METRICS:
            return 0, FIRST_METRICS.index(metric), metric
        at = metric.removeprefix("R@")
        return (1, int(at), metric) if at.isdigit() else (2, 0, metric)

    return tuple(sorted(metrics, key=order))


def absent(
    table: pandas.DataFrame,
    failures: Iterable[Failure] = (),
    planned: Iterable[Trial] = (),
    refused: Iterable[tuple[Trial, str]] = (),
    done: Iterable[Trial] | None = None,
) -> pandas.DataFrame:
    """Return one line per trial without scores in `table`, and per level without a form for its loss.

    done: the trials of the records; by default, they are derived from the ids of the records.

    state     failed, missing (planned and not finished) or refused (the level has no form for the loss)
    reason    why, in a sentence; `kind` and `attempts` describe a failure
    lacks     the missing folds of a seed that has other folds, such as ` (fold 2 of 4)`

    Settings and shared factors are in the same columns as in `table`.
    """
    if done is None:
        finished = set(zip(table["trial"], plain(table["fold"]), strict=True))
    else:
        finished = {(trial.whole.id, trial.fold) for trial in done}
    failed = {(f.trial.whole.id, f.trial.fold): f for f in sorted(failures, key=lambda failure: failure.id)}
    rows = []
    for key, failure in failed.items():
        if key not in finished:
            why = {"kind": failure.kind, "reason": failure.reason, "attempts": failure.attempts}
            about = {**_of_trial(failure.trial), **_named(failure.trial.shared)}
            rows.append({**about, "trial": key[0], "state": FAILED, **why})
    for whole in {trial.whole.id: trial.whole for trial in planned}.values():
        for trial in whole.each_fold():
            if (key := (whole.id, trial.fold)) not in finished and key not in failed:
                why = {"trial": whole.id, "state": MISSING, "reason": "not run yet"}
                rows.append({**_of_trial(trial), **_named(trial.shared), **why})
    for trial, reason in refused:
        about = {**_of_trial(trial), **_named(trial.shared), "seed": None, "fold": None}
        rows.append({**about, "state": REFUSED, "reason": reason})
    return of_absent(rows)


def of_absent(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return the lines of trials without a record as a frame."""
    kinds = {name: SCORES[name].kind for name in (*TRIAL_COLUMNS, *SHARED_BY_A_LOSS)}
    kinds = {name: "text" if kind == "category" else kind for name, kind in kinds.items()}
    return pandas.DataFrame(_columns(rows, kinds | ABSENT))


def curves(records: Iterable[Record]) -> pandas.DataFrame:
    """Return one line per record and epoch: record, epoch, loss, lr and the validation score (MAP@R)."""
    records = [record for record in records if record.curve]
    points = [epoch for record in records for epoch in record.curve]
    codes = [place for place, record in enumerate(records) for _ in record.curve]
    return pandas.DataFrame(
        {
            "record": pandas.Categorical.from_codes(codes, [record.id for record in records]),
            "epoch": typed([epoch.epoch for epoch in points], "integer"),
            "loss": typed([epoch.loss for epoch in points], "number"),
            "lr": typed([epoch.lr for epoch in points], "number"),
            "validation": typed([epoch.validation.get(FAIR.metric) for epoch in points], "number"),
        }
    )
