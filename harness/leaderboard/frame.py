"""The leaderboard as a DataFrame: one line per block, row and metric, in the order of the tables.

    board = harness.leaderboard(harness.scores("results/runs/quick"))

Columns are documented in `columns.LEADERBOARD`. A block contains the rows that may be compared (`blocks`), a row is
an arm (`rows`), and `comparisons` tests the rows against each other. Published numbers come after the rows of their
block. They never enter our statistics.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from harness import registry
from harness.errors import UserError
from harness.leaderboard import columns, notes
from harness.leaderboard.blocks import Block, arrange
from harness.leaderboard.columns import HERE, LEADERBOARD, ordered
from harness.leaderboard.comparisons import Scores, Summary, judge
from harness.leaderboard.notes import Note
from harness.leaderboard.published import Published
from harness.leaderboard.rows import Row, rows_of
from harness.leaderboard.scores import FIRST_METRICS, arm_order, levels_in_order, metric_order, of_absent
from harness.leaderboard.seeds import by_seed
from harness.runs.outcomes import ByClass, mean

SHOWN = 2  # metrics that a table shows by default
Outcomes = Callable[[str], ByClass | None]


class ReportError(UserError):
    """A report that cannot be made as requested."""


@dataclass(frozen=True)
class Part:
    """The factors, notes and summaries of one block.

    data       details of its first seed, with the sizes of the splits; None without any
    tuned      whether a search chose the settings of its arms
    metrics    the metrics of the block, in order
    shown      the metrics that tables print
    summaries  a summary of each metric
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

    absent     trials without a record, as `scores.absent` returns them: they give the reasons for missing seeds
    planned    whether `absent` lists all missing trials; otherwise every row is expected to have all seeds
    outcomes   returns the outcomes of the test queries of a record id, for intervals over test classes
    published  published rows, shown next to ours
    metrics    the metrics that tables print and notes describe (default: R@1 and MAP@R)
    findings   findings of the fairness rules, each with `sentence`, `severity` and `records`

    The score of a seed with folds is the mean over all its folds. Raises ReportError for a metric without any score.
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
    """Return the leaderboard and the part of each block (see `leaderboard`)."""
    _check_names(metrics, scores)
    seeds, absent = by_seed(scores, of_absent([]) if absent is None else absent)
    details = notes.details(seeds)
    tested = _by_record(seeds)
    best = _by_record(seeds, "best_test_epoch")
    all_lines, parts = [], []
    for number, block in enumerate(arrange(seeds, absent), 1):
        rows = rows_of(block, planned)
        ids = [entry.record for entry in block.entries if entry.record is not None]
        present = metric_order({metric for id in ids for metric in tested[id]}) or FIRST_METRICS[:SHOWN]
        shown = tuple(metric for metric in metrics if metric in present) or present[:SHOWN]
        lines, summaries = _lines(rows, present, tested, _outcomes_of(rows, outcomes))
        printed = [summary for metric in shown for summary in summaries if summary.metric == metric]
        arms = {
            part: entry.arm
            for entry in block.entries
            if entry.record is not None
            for part in entry.parts.splitlines()
        }
        about_rows = notes.of_block(block.place[0], rows, arms, details, printed, findings)
        below = {arm for note in about_rows if note.rule == notes.BELOW for arm in note.arms}
        factors = "; ".join(f"{name}={value}" for name, value in block.differing.items())
        about = {"block": number, "dataset": block.place[0], "backbone": block.place[1], "factors": factors}
        for row, row_lines in zip(rows, lines, strict=True):
            about |= {"source": HERE, "below_start": row.arm in below}
            about["findings"] = " ".join(note.sentence for note in about_rows if note.concerns(row.arm)) or None
            all_lines += [{**about, **line, **_inflation(row, line["metric"], tested, best)} for line in row_lines]
        losses = {row.line["baseline"] or row.arm for row in rows}
        dim = block.factors.get("model.dim")
        published_rows = [other for other in published if other.fits(block.place, dim, losses)]
        for place, published_row in enumerate(published_rows, len(rows) + 1):
            all_lines += [{**_about(number, block, place), **line} for line in _published(published_row)]
        first = next((entry for entry in block.entries if entry.level != "floor"), next(iter(block.entries), None))
        data = details[ids[0]] if ids else None
        parts.append(Part(block, data, bool(first and first.tuned), present, shown, tuple(summaries), about_rows))
    return _categorised(columns.frame(all_lines, LEADERBOARD)), parts


def _check_names(metrics: Sequence[str], scores: pandas.DataFrame) -> None:
    """Raise ReportError for a metric without any score, and for a metric that is named twice."""
    if len(set(metrics)) < len(metrics):
        raise ReportError(f"a metric is named twice in {', '.join(metrics)}")
    known = set(scores["metric"].unique())
    for metric in metrics if len(scores) else ():
        if metric not in known:
            raise ReportError(registry.unknown("metric in these records", metric, known))


def _by_record(seeds: pandas.DataFrame, column: str = "value") -> dict[str, dict[str, float]]:
    """Return {record: {metric: value}}. In columns other than the score, leave out unknown values."""
    values: dict[str, dict[str, float]] = {}
    for record, metric, value in zip(seeds["record"], seeds["metric"], seeds[column].tolist(), strict=True):
        if column == "value" or not math.isnan(value):
            values.setdefault(record, {})[metric] = value
    return values


def _outcomes_of(rows: Sequence[Row], read: Outcomes | None) -> list[dict[int, ByClass] | None]:
    """Return the saved outcomes of each row, by seed; None for each row without `read`."""
    if read is None:
        return [None] * len(rows)
    outcomes_by_row = []
    for row in rows:
        by_seed = {record.seed: mean([read(part) for part in record.parts.splitlines()]) for record in row.records}
        outcomes_by_row.append({seed: outcomes for seed, outcomes in by_seed.items() if outcomes is not None})
    return outcomes_by_row


def _lines(
    rows: Sequence[Row],
    metrics: Sequence[str],
    tested: Mapping[str, Mapping[str, float]],
    outcomes: Sequence[Mapping[int, ByClass] | None],
) -> tuple[list[list[dict[str, Any]]], list[Summary]]:
    """Return the lines of each row, one per metric, and the summary of each metric."""
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
    """Return how much the best test epoch would have added: the mean over the records that have it."""
    known = [
        best[record.record][metric] - tested[record.record][metric]
        for record in row.records
        if metric in best.get(record.record, ()) and metric in tested[record.record]
    ]
    return {"inflation": sum(known) / len(known), "inflation_n": len(known)} if known else {}


def _about(number: int, block: Block, row: int) -> dict[str, Any]:
    return {"block": number, "row": row, "dataset": block.place[0], "backbone": block.place[1]}


def _published(row: Published) -> list[dict[str, Any]]:
    about = {
        "arm": row.arm,
        "name": row.arm,
        "loss": row.loss,
        "level": row.level,
        "source": row.source,
    }
    return [{**about, "metric": metric, "mean": value} for metric, value in row.values.items()]


def _categorised(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return the frame with its categories in table order."""
    all_lines = columns.lines(table, ("arm", "level", "baseline", "source", "loss"))
    arms = {
        (line.arm, line.level, line.baseline or (line.arm if line.source == HERE else line.loss))
        for line in all_lines
    }
    arms = sorted(arms, key=lambda arm: arm_order(*arm))
    orders = {
        "arm": [arm for arm, _, _ in arms],
        "baseline": [baseline for _, _, baseline in arms],
        "level": levels_in_order(level for _, level, _ in arms),
        "metric": metric_order(set(table["metric"])),
        "dataset": sorted(set(table["dataset"])),
        "backbone": sorted(set(table["backbone"])),
    }
    return table.assign(**{name: ordered(columns.plain(table[name]), order) for name, order in orders.items()})
