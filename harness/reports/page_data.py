"""What the leaderboard page holds, as compact JSON: the page draws tables and figures from it when they are seen.

Scores are percent, rounded so that the page prints what the tables print. Curves are strings: two characters a point,
64² steps between the least and the largest value of the curve; long ones are thinned until the page is small enough.
"""

import json
import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from harness.fairness.protocols import FAIR, PROTOCOLS
from harness.leaderboard import statistics
from harness.leaderboard.tables import Block, Leaderboard, Row
from harness.reports import wording
from harness.reports.reproduction import command
from harness.runs.record import Epoch, Record

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
STEPS = len(ALPHABET) ** 2 - 1
BYTES_BESIDE_POINTS = 48  # of a record's curves: their ends and signs
MOST_POINTS = 240  # of one curve: more than its drawing has pixels to tell apart
MOST_BYTES = 4_600_000  # of all data; what is left to the 5 MB of a page is the page itself
UNREAD = {"step": (), "constant": ("step_epochs", "gamma"), "cosine": ("step_epochs", "gamma")}  # by a schedule


def page_data(board: Leaderboard, caption: Sequence[str] = ()) -> dict[str, Any]:
    """Everything the page shows, ready for `json.dumps`; at most MOST_BYTES of it, if thinner curves can do that."""
    page: dict[str, Any] = {
        "title": board.title,
        "progress": wording.progress(board),
        "partial": board.partial,
        "notes": board.notes,
        "caption": caption,
        "provenance": [],
        "settings": [],
        "epochs": [],
        "blocks": [],
        "variance": _variance(board),
        "gallery": [shelf.content() for shelf in board.gallery],
    }
    origins, settings = _Shared(page["provenance"]), _Shared(page["settings"])
    page["blocks"] = [_block(block, origins, settings) for block in board.blocks]
    records = [r for block in board.blocks for row in block.rows for r in row.parts if r.curve]
    room = (MOST_BYTES - len(dumps(page))) // max(len(records), 1) - BYTES_BESIDE_POINTS
    points, epochs = min(MOST_POINTS, max(room // 4, 12)), _Shared(page["epochs"])
    for block, content in zip(board.blocks, page["blocks"], strict=True):
        content["rows"]["curves"] = [[_curves(record, points, epochs) for record in row.parts] for row in block.rows]
    return page


def dumps(content: Any) -> str:
    """Compact JSON that may stand inside a script element."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


class _Shared:
    """A list of things that many rows have in common; a row holds the place in it."""

    def __init__(self, things: list[Any]):
        self._things, self._places = things, {}

    def place(self, thing: Any) -> int:
        key = json.dumps(thing, sort_keys=True, default=str)
        if key not in self._places:
            self._places[key] = len(self._things)
            self._things.append(thing)
        return self._places[key]


def _block(block: Block, origins: _Shared, settings: _Shared) -> dict[str, Any]:
    trials = [r.trial for row in block.rows for r in row.records] or [
        f.trial for row in block.rows for f in row.failures
    ]
    protocol = trials[0].protocol if trials else FAIR.name
    digits = [wording.decimals(block, metric) for metric in block.metrics]
    places = {row.arm: [] for row in block.rows}
    for number, note in enumerate(block.findings):
        for arm in note.arms:
            places.setdefault(arm, []).append(number)
    return {
        "dataset": block.dataset,
        "backbone": block.backbone,
        "heading": wording.heading(block),
        "protocol": protocol,
        "unlike": ", ".join(wording.unlike(block)),
        "marks": sorted({note.rule for note in block.findings if note.of_all}),
        "fair": _fair(block, protocol),
        "metrics": block.metrics,
        "shown": [block.metrics.index(metric) for metric in block.shown],
        "digits": digits,
        "caption": block.caption,
        "footnotes": wording.footnotes(block),
        "findings": [[note.rule, note.severity, note.sentence] for note in block.findings],
        "selected": FAIR.metric,
        "rows": _rows(block, origins, settings, [places[row.arm] for row in block.rows]),
        "cells": [_cells(block, metric, d) for metric, d in zip(block.metrics, digits, strict=True)],
        "published": [
            [row.arm, row.short, row.source, [_rounded(row.values.get(m), 1) for m in block.metrics]]
            for row in block.published
        ],
    }


def _fair(block: Block, protocol: str) -> bool:
    """Whether the protocol reads the test once, and the data are those that their name says (FAIR-01)."""
    known = PROTOCOLS.get(protocol)
    return not (known and known.watches_test) and not wording.unlike(block)


def _rows(block: Block, origins: _Shared, settings: _Shared, notes: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """What the rows are, one list a column."""
    rows = block.rows
    return {
        "arm": [row.arm for row in rows],
        "name": [row.name for row in rows],
        "title": [wording.title(row) for row in rows],
        "loss": [row.loss for row in rows],
        "level": [row.level for row in rows],
        "state": [row.state for row in rows],
        "reason": [row.reason for row in rows],
        "n": [row.n for row in rows],
        "seeds": [wording.seeds(row) if row.expected else "" for row in rows],
        "time": [_short(row.train_s) for row in rows],
        "timed": [wording.time(row) for row in rows],
        "passes": [_short(row.passes) for row in rows],
        "passed": [wording.passes(row) for row in rows],
        "peak": [_short(row.peak_gb) for row in rows],
        "below": [wording.below(block, row) for row in rows],
        "findings": list(notes),
        "settings": [settings.place(_settings(row)) for row in rows],
        "command": [_command(row) for row in rows],
        "inflation": [_inflation(row, block.metrics[0]) for row in rows],
        "prefix": [_prefix(row) for row in rows],
        "records": [[_record(block, row, record, origins) for record in row.parts] for row in rows],
    }


def _prefix(row: Row) -> str:
    """What the ids of the row's records begin with, all of them."""
    first, last = (f([record.id for record in row.parts], default="") for f in (min, max))
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _record(block: Block, row: Row, record: Record, origins: _Shared) -> list[Any]:
    """Seed, end of the id, test scores, validation score, chosen epoch, seconds of training, provenance."""
    return [
        record.trial.seed,
        record.id[len(_prefix(row)) :],
        [_rounded(record.test.get(metric), 2) for metric in block.metrics],
        _rounded(record.validation.get(FAIR.metric), 2),
        record.selected_epoch,
        _short(record.cost.train_s) if record.curve else None,
        origins.place(_origin(record)),
    ]


def _cells(block: Block, metric: str, digits: int) -> dict[str, list[Any]]:
    """One metric of all rows, one list a column; columns without any value are left out."""
    cells = [row.cells.get(metric) for row in block.rows]
    place = statistics.places({number: cell.mean for number, cell in enumerate(cells) if cell})
    columns = {
        "place": [place.get(number) for number in range(len(cells))],
        "mean": [c and _rounded(c.mean, digits) for c in cells],
        "half": [c and _rounded(c.half, digits) for c in cells],
        "difference": [c and _rounded(c.difference, digits) for c in cells],
        "differenceHalf": [c and _rounded(c.difference_half, digits) for c in cells],
        "p": [c and c.adjusted_p is not None and float(f"{c.adjusted_p:.2g}") for c in cells],
        "marks": [
            "".join(sign for sign, on in (("b", c.best), ("s", c.second), ("d", c.significant)) if on) if c else ""
            for c in cells
        ],
        "rank": [c and c.rank and [c.rank.rank, c.rank.low, c.rank.high] for c in cells],
        "bootstrap": [
            c and c.bootstrap and [_rounded(x, digits) for x in (c.bootstrap.low, c.bootstrap.high)] for c in cells
        ],
        "classes": [c and c.classes and _rounded(c.classes.half, digits) for c in cells],
        "both": [c and c.both and _rounded(c.both.half, digits) for c in cells],
        "differenceBoth": [c and c.difference_both and _rounded(c.difference_both.half, digits) for c in cells],
    }
    empty = (None, "", False)
    return {
        name: [None if value is False else value for value in values]
        for name, values in columns.items()
        if any(value not in empty for value in values)
    }


def _settings(row: Row) -> list[list[str]]:
    """What the arm is: its hyperparameters, the step sizes that its schedule reads, and how Metrix mixes."""
    if not row.records and not row.failures:
        return []
    trial = (row.records[0] if row.records else row.failures[0]).trial
    shown = {**trial.arm.options, **row.steps}
    if trial.arm.metrix is not None:
        shown |= {f"metrix.{name}": value for name, value in trial.arm.metrix.model_dump().items()}
    unread = UNREAD.get(shown.get("schedule"), ())
    return [
        [name, value if isinstance(value, str) else json.dumps(value)]
        for name, value in shown.items()
        if value is not None and name not in unread
    ]


def _command(row: Row) -> list[Any] | None:
    """The command for the row's first record, its seed left out, and whether it is known to be the very trial."""
    if not row.parts:
        return None
    record = row.parts[0]
    words, known = command(record.trial, str(record.grid.get("name", "GRID")))
    return [words.rpartition(" ")[0], int(known)]


def _inflation(row: Row, metric: str) -> str:
    text = wording.inflation(row, metric)
    return "" if text == wording.MISSING else text


def _origin(record: Record) -> list[list[str]]:
    """Where a record's numbers come from, flattened; what differs from seed to seed is left to the record itself."""
    found = {"grid": f"{record.grid.get('name')} {record.grid.get('version', '')}".strip()}
    for key, value in {**record.provenance, "weights": record.weights}.items():
        if key in ("initial_weights", "tested_weights") or value is None:
            continue
        if isinstance(value, dict):
            found[key] = ", ".join(f"{name} {version}" for name, version in value.items())
        else:
            found[key] = str(value)[:16] if key == "evaluator" else str(value)
    return [[key, value] for key, value in found.items()]


def _variance(board: Leaderboard) -> dict[str, Any] | None:
    if board.variance is None:
        return None
    return {
        "metric": board.variance.metric,
        "sizes": board.variance.sizes,
        "shares": [[" × ".join(factors), round(100 * share, 2)] for factors, share in board.variance.shares],
        "left_out": board.variance.left_out,
    }


def _curves(record: Record, points: int, epochs: _Shared) -> list[Any] | None:
    """[place of the epochs, loss, validation], each curve as `encoded` has it; None where nothing was trained."""
    if not record.curve:
        return None
    some = thinned(record.curve, points)
    return [
        epochs.place([epoch.epoch for epoch in some]),
        encoded([epoch.loss for epoch in some]),
        encoded([epoch.validation.get(FAIR.metric) for epoch in some], 100),
    ]


def thinned(curve: Sequence[Epoch], points: int) -> Sequence[Epoch]:
    """At most `points` epochs: the first, the last, and others evenly between."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]


def encoded(values: Iterable[float | None], factor: float = 1) -> list[Any] | None:
    """[least, largest, two characters a value]; `..` stands for no value; None where there is none at all."""
    values = [None if v is None or not math.isfinite(v) else factor * v for v in values]
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    steps = [None if v is None else round((v - low) / span * STEPS) for v in values]
    text = "".join(".." if s is None else ALPHABET[s // 64] + ALPHABET[s % 64] for s in steps)
    return [_short(low), _short(high), text]


def _rounded(value: float | None, digits: int) -> float | None:
    """A fraction in percent, in as few digits as print alike: the page rounds halves up, Python to even."""
    if value is None or not math.isfinite(value):
        return None
    value *= 100
    text = f"{value:.{digits}f}"
    for places in range(digits + 2, digits + 8):
        short = round(value, places)
        if f"{Decimal(short).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)}" == text:
            return short
    return float(text)


def _short(value: float | None) -> float | None:
    """Five significant digits: enough to draw and to sort by."""
    return None if value is None else float(f"{value:.5g}")
