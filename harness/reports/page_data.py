"""The data of the leaderboard page as compact JSON, from which the page draws tables and figures on demand.

Scores are in percent, rounded so that the page and the tables print the same digits. Curves are strings with two
characters per point: 64² steps between the smallest and the largest value. Long curves are thinned until the page is
small enough.
"""

import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from harness.fairness.protocols import FAIR, PROTOCOLS
from harness.leaderboard import comparisons, published, statistics
from harness.leaderboard.blocks import STEPS
from harness.leaderboard.board import Block, Board, record_ids
from harness.leaderboard.columns import lines, plain
from harness.leaderboard.scores import PROVENANCE, SETTINGS
from harness.reports import looks, wording

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
HEIGHTS = len(ALPHABET) ** 2 - 1
BYTES_BESIDE_POINTS = 48  # overhead of the curves of a record
MOST_POINTS = 240  # per curve: more than its drawing can resolve
MOST_BYTES = 4_600_000  # all data; the rest of the 5 MB of a page is for the page itself
UNREAD = {
    "step": (),
    "constant": ("step_epochs", "gamma"),
    "cosine": ("step_epochs", "gamma"),
}  # step settings that a schedule does not use


def page_data(board: Board, caption: Sequence[str] = ()) -> dict[str, Any]:
    """Return the data of the page for `json.dumps`: at most MOST_BYTES, if thinning the curves is enough."""
    page: dict[str, Any] = {
        "title": board.title,
        "progress": wording.progress(board),
        "partial": board.partial,
        "notes": board.notes,
        "caption": caption,
        "levels": {level: _look(place, level) for place, level in enumerate(levels_of(board))},
        "provenance": [],
        "settings": [],
        "epochs": [],
        "blocks": [],
        "variance": _variance(board),
        "gallery": [gallery.content() for gallery in board.gallery],
    }
    records = _Records(board, _Shared(page["provenance"]), _Shared(page["settings"]))
    page["blocks"] = [_block(block, records) for block in board.blocks]
    shown = [[record_ids(row) for row in block.rows] for block in board.blocks]
    curves = _curves_of(board)
    drawn = sum(id in curves for block in shown for row in block for id in row)
    room = (MOST_BYTES - len(dumps(page))) // max(drawn, 1) - BYTES_BESIDE_POINTS
    points, epochs = min(MOST_POINTS, max(room // 4, 12)), _Shared(page["epochs"])
    for block, content in zip(shown, page["blocks"], strict=True):
        content["rows"]["curves"] = [[_curves(curves.get(id), points, epochs) for id in row] for row in block]
    return page


def levels_of(board: Board) -> list[str]:
    """Return the levels of all rows, in order."""
    return looks.in_order(row.level for block in board.blocks for row in block.rows)


def _look(place: int, level: str) -> list[str]:
    """Return the colour (a CSS variable), shape and dashes of the level at this place among those of the page."""
    look = looks.look(level)
    return [f"var(--level-{place})", look.shape, look.dash]


def dumps(content: Any) -> str:
    """Return compact JSON that is safe inside a script element."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


class _Shared:
    """A list of values that many rows share. A row has the index of its value."""

    def __init__(self, things: list[Any]):
        self._things, self._places = things, {}

    def place(self, thing: Any) -> int:
        key = json.dumps(thing, sort_keys=True, default=str)
        if key not in self._places:
            self._places[key] = len(self._things)
            self._things.append(thing)
        return self._places[key]


class _Records:
    """The single records behind a board, read from the scores frame, by id.

    tested       {id: {metric: score}}
    validation   {id: validation score of the selected checkpoint}
    provenance   {id: index in the list of the page}
    """

    def __init__(self, board: Board, origins: _Shared, settings: _Shared):
        self.commands, self._settings = board.commands, settings
        scores = board.scores
        self.tested: dict[str, dict[str, float]] = {}
        self.validation: dict[str, float | None] = {}
        for line in lines(scores, ("record", "metric", "value", "validation")):
            self.tested.setdefault(line.record, {})[line.metric] = line.value
            if line.metric == FAIR.metric:
                self.validation[line.record] = line.validation
        table = scores.drop_duplicates("record")
        self.known = {line.record: line for line in lines(table, ("record", "seed", "selected_epoch", "train_s"))}
        names = [name for name in table if name.startswith(PROVENANCE)]
        values = zip(*(plain(table[name]) for name in ("grid", *names)), strict=True)
        origin = functools.cache(lambda values: origins.place(_origin(names, *values)))
        self.provenance = {id: origin(one) for id, one in zip(table["record"], values, strict=True)}
        self.settings = {**_settings_of(board.absent, "arm"), **_settings_of(table, "record")}

    def place_of_settings(self, row: Any) -> int:
        """Return the index of the settings of a row in the list of the page."""
        ids = record_ids(row)
        known = self.settings.get(ids[0] if ids else (row.dataset, row.backbone, row.arm), {})
        return self._settings.place(_settings(row, known) if row.state not in ("--", "n/a") else [])


def _settings_of(table: Any, key: str) -> dict[Any, dict[str, Any]]:
    """Return {record, or (dataset, backbone, arm): settings of the arm}, without blanks."""
    names = [name for name in table if name.startswith(SETTINGS)]
    keys = table["record"] if key == "record" else zip(table["dataset"], table["backbone"], table["arm"], strict=True)
    values = zip(*(plain(table[name]) for name in names), strict=True) if names else itertools.repeat(())
    named = [name.removeprefix("loss.") for name in names]
    return {
        key: {name: value for name, value in zip(named, row_values, strict=True) if value is not None}
        for key, row_values in zip(keys, values, strict=False)
    }


def _block(block: Block, records: _Records) -> dict[str, Any]:
    protocol = block.factors.get("protocol", FAIR.name)
    digits = [wording.decimals(block, metric) for metric in block.metrics]
    places = {row.arm: [] for row in block.rows}
    for number, note in enumerate(block.findings):
        for arm in note.arms:
            places.setdefault(arm, []).append(number)
    return {
        "dataset": block.dataset,
        "backbone": block.backbone,
        "heading": block.heading,
        "protocol": protocol,
        "unlike": block.unlike,
        "marks": sorted({note.rule for note in block.findings if note.of_all}),
        "fair": _fair(block, protocol),
        "metrics": block.metrics,
        "shown": [block.metrics.index(metric) for metric in block.shown],
        "digits": digits,
        "caption": block.caption,
        "footnotes": wording.footnotes(block),
        "findings": [[note.rule, note.severity, note.sentence] for note in block.findings],
        "selected": FAIR.metric,
        "rows": _rows(block, records, [places[row.arm] for row in block.rows]),
        "cells": [_cells(block, metric, d) for metric, d in zip(block.metrics, digits, strict=True)],
        "published": [
            [
                row.arm,
                published.short(row.source),
                row.source,
                [_rounded(cell.mean if cell else None, 1) for cell in (block.cell(row, m) for m in block.metrics)],
            ]
            for row in block.published
        ],
    }


def _fair(block: Block, protocol: str) -> bool:
    """Return whether the protocol reads the test once and the data match their name (FAIR-01)."""
    known = PROTOCOLS.get(protocol)
    return not (known and known.watches_test) and not block.unlike


def _rows(block: Block, records: _Records, notes: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """Return the rows, one list per column."""
    rows = block.rows
    return {
        "arm": [row.arm for row in rows],
        "name": [row.name for row in rows],
        "title": [wording.title(row) for row in rows],
        "loss": [row.baseline or row.arm for row in rows],
        "level": [row.level for row in rows],
        "state": [row.state for row in rows],
        "reason": [row.reason or "" for row in rows],
        "n": [wording.count(row) for row in rows],
        "seeds": [wording.seeds(row) for row in rows],
        "time": [_short(row.train_s) for row in rows],
        "timed": [wording.time(row) for row in rows],
        "passes": [_short(row.forward_passes_per_step) for row in rows],
        "passed": [wording.passes(row) for row in rows],
        "peak": [_short(row.peak_gb) for row in rows],
        "below": [wording.below(row) for row in rows],
        "findings": list(notes),
        "settings": [records.place_of_settings(row) for row in rows],
        "command": [_command(row, records) for row in rows],
        "inflation": [_inflation(block.cell(row, block.metrics[0])) for row in rows],
        "prefix": [_prefix(record_ids(row)) for row in rows],
        "records": [_records_of(block, row, records) for row in rows],
    }


def _prefix(ids: Sequence[str]) -> str:
    """Return the common prefix of the ids of a row's records."""
    first, last = min(ids, default=""), max(ids, default="")
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _records_of(block: Block, row: Any, records: _Records) -> list[list[Any]]:
    """Return seed, end of the id, test scores, validation, chosen epoch, training seconds, provenance per record."""
    ids = record_ids(row)
    prefix = len(_prefix(ids))
    return [
        [
            records.known[id].seed,
            id[prefix:],
            [_rounded(records.tested[id].get(metric), 2) for metric in block.metrics],
            _rounded(records.validation.get(id), 2),
            records.known[id].selected_epoch,
            _short(records.known[id].train_s) if row.level != "floor" else None,
            records.provenance[id],
        ]
        for id in ids
    ]


def _cells(block: Block, metric: str, digits: int) -> dict[str, list[Any]]:
    """Return one metric of all rows, one list per column, without empty columns."""
    cells = [block.cell(row, metric) for row in block.rows]
    place = statistics.places({number: cell.mean for number, cell in enumerate(cells) if cell})
    signs = (("b", "best"), ("s", "second"), ("d", "significant"))

    def half(cell: Any, name: str) -> float | None:
        return _rounded(comparisons.half(cell._asdict(), name), digits)

    columns = {
        "place": [place.get(number) for number in range(len(cells))],
        "mean": [c and _rounded(c.mean, digits) for c in cells],
        "half": [c and _rounded(c.half, digits) for c in cells],
        "difference": [c and _rounded(c.difference, digits) for c in cells],
        "differenceHalf": [c and _rounded(c.difference_half, digits) for c in cells],
        "p": [c and c.difference_p_holm is not None and float(f"{c.difference_p_holm:.2g}") for c in cells],
        "marks": ["".join(sign for sign, name in signs if getattr(c, name)) if c else "" for c in cells],
        "rank": [c and c.rank and [c.rank, c.rank_low, c.rank_high] for c in cells],
        "bootstrap": [
            c and c.bootstrap_low is not None and [_rounded(x, digits) for x in (c.bootstrap_low, c.bootstrap_high)]
            for c in cells
        ],
        "classes": [c and half(c, "classes") for c in cells],
        "both": [c and half(c, "both") for c in cells],
        "differenceBoth": [c and half(c, "difference_both") for c in cells],
    }
    empty = (None, "", False)
    return {
        name: [None if value is False else value for value in values]
        for name, values in columns.items()
        if any(value not in empty for value in values)
    }


def _settings(row: Any, known: Mapping[str, Any]) -> list[list[str]]:
    """Return the settings of an arm: hyperparameters, step sizes that its schedule uses, those of its level."""
    losses = {name: value for name, value in known.items() if not name.startswith(("metrix.", "rival."))}
    shown = {**losses, **{name: getattr(row, name) for name in STEPS}, **known}
    unread = UNREAD.get(row.schedule, ())
    return [
        [name, value if isinstance(value, str) else json.dumps(value)]
        for name, value in shown.items()
        if value is not None and name not in unread
    ]


def _command(row: Any, records: _Records) -> list[Any] | None:
    """Return the command for the first record without its seed, and whether it is known to give the same trial."""
    if not (ids := record_ids(row)):
        return None
    words, known = records.commands[ids[0]]
    return [words.rpartition(" ")[0], int(known)]


def _inflation(cell: Any | None) -> str:
    text = wording.inflation(cell)
    return "" if text == wording.MISSING else text


def _origin(names: Sequence[str], grid: str, *values: str | None) -> list[list[str]]:
    """Return the provenance of a record, without the values that differ between seeds."""
    values_by_name = {"grid": grid}
    for name, value in zip(names, values, strict=True):
        key = name.removeprefix(PROVENANCE)
        if value is not None and key not in ("initial_weights", "tested_weights"):
            values_by_name[key] = value[:16] if key == "evaluator" else value
    return [[key, value] for key, value in values_by_name.items()]


def _variance(board: Board) -> dict[str, Any] | None:
    if board.variance is None:
        return None
    return {
        "metric": board.variance.metric,
        "sizes": board.variance.sizes,
        "shares": [[" × ".join(factors), round(100 * share, 2)] for factors, share in board.variance.shares],
        "left_out": board.variance.left_out,
    }


def _curves_of(board: Board) -> dict[str, tuple[list[Any], ...]]:
    """Return {record: (epochs, losses, validation scores)}."""
    curves = board.curves
    columns = [plain(curves[name]) for name in ("epoch", "loss", "validation")]
    starts = curves["record"].cat.codes.diff().ne(0).to_numpy().nonzero()[0].tolist()
    ends = [*starts[1:], len(curves)][: len(starts)]
    records = curves["record"].iloc[starts]
    return {
        record: tuple(column[start:end] for column in columns)
        for record, start, end in zip(records, starts, ends, strict=True)
    }


def _curves(curve: tuple[list[Any], ...] | None, points: int, epochs: _Shared) -> list[Any] | None:
    """Return [index of the epochs, loss, validation] with curves as in `encoded`; None without training."""
    if curve is None:
        return None
    epoch, loss, validation = (thinned(values, points) for values in curve)
    return [epochs.place(epoch), encoded(loss), encoded(validation, 100)]


def thinned(curve: Sequence[Any], points: int) -> Sequence[Any]:
    """Return at most `points` epochs: the first, the last, and evenly spaced ones between them."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]


def encoded(values: Iterable[float | None], factor: float = 1) -> list[Any] | None:
    """Return [smallest, largest, two characters per value]; `..` for no value; None if there are no values."""
    values = [None if v is None or not math.isfinite(v) else factor * v for v in values]
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    steps = [None if v is None else round((v - low) / span * HEIGHTS) for v in values]
    text = "".join(".." if s is None else ALPHABET[s // 64] + ALPHABET[s % 64] for s in steps)
    return [_short(low), _short(high), text]


def _rounded(value: float | None, digits: int) -> float | None:
    """Return a fraction in percent, with the fewest digits that the page prints as Python does.

    The page rounds halves up, Python rounds them to even.
    """
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
    """Return five significant digits, enough to draw and to sort."""
    return None if value is None else float(f"{value:.5g}")
