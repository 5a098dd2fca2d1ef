"""The leaderboard as a DataFrame: one line per block, row and metric, in the order of the tables.

    board = harness.leaderboard(harness.scores("results/runs/quick"))

Columns are documented in `columns.LEADERBOARD`. A block holds what may be compared (`blocks`), a row is an arm
(`rows`), and what the rows say against each other stands in `comparisons`. Numbers that others published follow the
rows of their block; none of them enters a number of ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from harness import registry
from harness.config import LEVELS
from harness.errors import UserError
from harness.leaderboard import columns, notes
from harness.leaderboard.blocks import Block, arrange
from harness.leaderboard.columns import HERE, LEADERBOARD, ordered
from harness.leaderboard.comparisons import Scores, Summary, judge
from harness.leaderboard.notes import Note
from harness.leaderboard.published import Published
from harness.leaderboard.rows import Row, rows_of
from harness.leaderboard.scores import FIRST_METRICS, arm_order, metric_order, of_absent
from harness.leaderboard.seeds import by_seed
from harness.runs.outcomes import ByClass, mean

SHOWN = 2  # metrics that a table has room for, unless others are named
Outcomes = Callable[[str], ByClass | None]


class ReportError(UserError):
    """A report that cannot be made as it was asked for."""


@dataclass(frozen=True)
class Part:
    """What belongs to one block beside its lines: its factors, notes, and a summary of each metric.

    metrics  those of the block in order, `shown` those that tables print
    data     details of its first seed, which say how large the splits are; None without any
    tuned    whether a search chose the settings of its arms
    """

    block: Block
    data: Any | None
    tuned: bool
    metrics: tuple[str, ...]
    shown: tuple[str, ...]
    summaries: tuple[Summary, ...]
    notes: tuple[Note, ...]


def leaderboard(
    scores: pandas.DataFrame,
    absent: pandas.DataFrame | None = None,
    *,
    planned: bool = False,
    outcomes: Outcomes | None = None,
    published: Sequence[Published] = (),
    metrics: Sequence[str] = (),
    findings: Sequence[Any] = (),
) -> pandas.DataFrame:
    """Return the leaderboard of scores (see `scores`): one line per block, row and metric.

    absent     what has no record, as `scores.absent` gives it: a row that lacks seeds says so, with the reason
    planned    whether `absent` lists all that is missing; otherwise each seed of a block is expected of all its rows
    outcomes   gives the outcomes of the test queries of a record id, for intervals over test classes
    published  numbers of others, shown beside ours
    metrics    those that notes look at first (R@1 and MAP@R where none is named)
    findings   of the fairness rules, each with `sentence`, `severity` and `records`

    Of a seed with folds the mean over all its folds counts. Raises ReportError for a metric that no score is of.
    """
    return compute(scores, absent, planned, outcomes, published, metrics, findings)[0]


def compute(
    scores: pandas.DataFrame,
    absent: pandas.DataFrame | None = None,
    planned: bool = False,
    outcomes: Outcomes | None = None,
    published: Sequence[Published] = (),
    metrics: Sequence[str] = (),
    findings: Sequence[Any] = (),
) -> tuple[pandas.DataFrame, list[Part]]:
    """Return the leaderboard, and beside it what belongs to each block (see `leaderboard`)."""
    _check_names(metrics, scores)
    seeds, absent = by_seed(scores, of_absent([]) if absent is None else absent)
    of_seed = notes.details(seeds)
    tested = _by_record(seeds)
    best = _by_record(seeds, "best_test_epoch")
    found, parts = [], []
    for number, block in enumerate(arrange(seeds, absent), 1):
        rows = rows_of(block, planned)
        ids = [entry.record for entry in block.entries if entry.record is not None]
        present = metric_order({metric for id in ids for metric in tested[id]}) or FIRST_METRICS[:SHOWN]
        shown = tuple(metric for metric in metrics if metric in present) or present[:SHOWN]
        lines, summaries = _lines(rows, present, tested, _outcomes_of(rows, outcomes))
        printed = [summary for metric in shown for summary in summaries if summary.metric == metric]
        arms = {part: e.arm for e in block.entries if e.record is not None for part in e.parts.splitlines()}
        about_rows = notes.of_block(block.place[0], rows, arms, of_seed, printed, findings)
        below = {arm for note in about_rows if note.rule == notes.BELOW for arm in note.arms}
        factors = "; ".join(f"{name}={value}" for name, value in block.differing.items())
        about = {"block": number, "dataset": block.place[0], "backbone": block.place[1], "factors": factors}
        for row, of_row in zip(rows, lines, strict=True):
            about |= {"source": HERE, "below_start": row.arm in below}
            about["findings"] = " ".join(note.sentence for note in about_rows if note.of(row.arm)) or None
            found += [{**about, **line, **_inflation(row, line["metric"], tested, best)} for line in of_row]
        losses = {row.line["baseline"] or row.arm for row in rows}
        beside = [theirs for theirs in published if theirs.fits(block.place, losses)]
        for place, theirs in enumerate(beside, len(rows) + 1):
            found += [{**_about(number, block, place), **line} for line in _published(theirs)]
        first = next((e for e in block.entries if e.level != "floor"), next(iter(block.entries), None))
        data = of_seed[ids[0]] if ids else None
        parts.append(Part(block, data, bool(first and first.tuned), present, shown, tuple(summaries), about_rows))
    return _categorised(columns.frame(found, LEADERBOARD)), parts


def _check_names(metrics: Sequence[str], scores: pandas.DataFrame) -> None:
    """Refuse the name of a metric that nothing was scored by, and one that is named twice."""
    if len(set(metrics)) < len(metrics):
        raise ReportError(f"a metric is named twice in {', '.join(metrics)}")
    known = set(scores["metric"].unique())
    for metric in metrics if len(scores) else ():
        if metric not in known:
            raise ReportError(registry.unknown("metric in these records", metric, known))


def _by_record(seeds: pandas.DataFrame, column: str = "value") -> dict[str, dict[str, float]]:
    """{record: {metric: value}}; of columns other than the score, only what is known."""
    found: dict[str, dict[str, float]] = {}
    for record, metric, value in zip(seeds["record"], seeds["metric"], seeds[column].tolist(), strict=True):
        if column == "value" or not math.isnan(value):
            found.setdefault(record, {})[metric] = value
    return found


def _outcomes_of(rows: Sequence[Row], read: Outcomes | None) -> list[dict[int, ByClass] | None]:
    """Outcomes by seed of all records that kept them, row by row; None where nothing is to be read."""
    if read is None:
        return [None] * len(rows)
    found = []
    for row in rows:
        kept = {record.seed: mean([read(part) for part in record.parts.splitlines()]) for record in row.records}
        found.append({seed: outcomes for seed, outcomes in kept.items() if outcomes is not None})
    return found


def _lines(
    rows: Sequence[Row],
    metrics: Sequence[str],
    tested: Mapping[str, Mapping[str, float]],
    outcomes: Sequence[Mapping[int, ByClass] | None],
) -> tuple[list[list[dict[str, Any]]], list[Summary]]:
    """The lines of each row, one per metric, and what holds for each metric."""
    lines: list[list[dict[str, Any]]] = [[] for _ in rows]
    summaries = []
    for metric in metrics:
        column: dict[int, Scores] = {}
        base = None
        for place, row in enumerate(rows):
            line = {"row": place + 1, **row.line, "metric": metric, "n": 0}
            lines[place].append(line)
            scored = {r.seed: tested[r.record][metric] for r in row.records if metric in tested[r.record]}
            finite = {seed: value for seed, value in scored.items() if math.isfinite(value)}
            scores = Scores(finite, line, base if row.variant else None, outcomes[place]) if finite else None
            base = base if row.variant else scores
            if scores is not None:
                column[place] = scores
                line["values_by_seed"] = " ".join(f"{seed}:{value!r}" for seed, value in sorted(finite.items()))
        summaries.append(judge(column, metric))
    return lines, summaries


def _inflation(
    row: Row, metric: str, tested: Mapping[str, Mapping[str, float]], best: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """How much the best test epoch would have added, the mean over the records that know it."""
    known = [
        best[record.record][metric] - tested[record.record][metric]
        for record in row.records
        if metric in best.get(record.record, ()) and metric in tested[record.record]
    ]
    return {"inflation": sum(known) / len(known), "inflation_n": len(known)} if known else {}


def _about(number: int, block: Block, row: int) -> dict[str, Any]:
    return {"block": number, "row": row, "dataset": block.place[0], "backbone": block.place[1]}


def _published(theirs: Published) -> list[dict[str, Any]]:
    about = {
        "arm": theirs.arm,
        "name": theirs.arm,
        "loss": theirs.loss,
        "level": theirs.level,
        "source": theirs.source,
    }
    return [{**about, "metric": metric, "mean": value} for metric, value in theirs.values.items()]


def _categorised(table: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with categories in the order of the tables."""
    found = columns.lines(table, ("arm", "level", "baseline", "source", "loss"))
    arms = {(one.arm, one.level, one.baseline or (one.arm if one.source == HERE else one.loss)) for one in found}
    arms = sorted(arms, key=lambda arm: arm_order(*arm))
    levels = sorted({level for _, level, _ in arms} - {*LEVELS, "floor"})
    orders = {
        "arm": [arm for arm, _, _ in arms],
        "baseline": [baseline for _, _, baseline in arms],
        "level": (*LEVELS, *levels, "floor"),
        "metric": metric_order(set(table["metric"])),
        "dataset": sorted(set(table["dataset"])),
        "backbone": sorted(set(table["backbone"])),
    }
    return table.assign(**{name: ordered(columns.plain(table[name]), order) for name, order in orders.items()})
