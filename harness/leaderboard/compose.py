"""Build the board for reports from records: first the frames, then the text."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas

from harness.config import Trial
from harness.fairness.comparability import factors_of
from harness.fairness.rules import data as data_rules
from harness.leaderboard import captions
from harness.leaderboard.board import Block, Board, record_ids
from harness.leaderboard.columns import lines
from harness.leaderboard.frame import Outcomes, Part, compute
from harness.leaderboard.published import Published
from harness.leaderboard.reproduction import command
from harness.leaderboard.scores import FIRST_METRICS, REFUSED, absent, curves, of_records
from harness.leaderboard.variance import sources_of_variance
from harness.runs.record import Failure, Record


def board_of(
    records: Iterable[Record],
    failures: Iterable[Failure] = (),
    planned: Iterable[Trial] = (),
    refused: Iterable[tuple[Trial, str]] = (),
    title: str | None = None,
    *,
    outcomes: Outcomes | None = None,
    published: Sequence[Published] = (),
    metrics: Sequence[str] = (),
    notes: Sequence[str] = (),
    findings: Sequence[Any] = (),
) -> Board:
    """Return the leaderboard of records with its text. The order of the records does not matter.

    planned  the trials that should exist. The board is partial if any of them has no record. Without `planned`, every
             trained row is expected to have all seeds of its block
    refused  a trial of each level without a form for its loss, and the reason
    notes    notes on how the records were collected

    The other parameters are as in `leaderboard`. Raises ReportError for a metric that no record has.
    """
    tested = {record.id: record for record in sorted(records, key=lambda record: record.id) if record.test}
    failures, planned = tuple(failures), tuple(planned)
    scores = of_records(tested.values())
    trials = [record.trial for record in tested.values()] if failures or planned else None
    missing = absent(scores, failures, planned, refused, trials)
    frame, parts = compute(scores, missing, bool(planned), outcomes, published, metrics, findings)
    by_block: dict[int, list[Any]] = {}
    for line in lines(frame):
        by_block.setdefault(line.block, []).append(line)
    blocks = tuple(_block(number, by_block[number], part, tested) for number, part in enumerate(parts, 1))
    done = _trials(scores)
    total = len(done | _trials(missing[missing["state"] != REFUSED]) | _all_folds(scores))
    grids = sorted({str(record.grid["name"]) for record in tested.values() if record.grid.get("name")})
    partial = any(row.state == "partial" for block in blocks for row in block.rows)
    return Board(
        title=title or " and ".join(grids) or "results",
        frame=frame,
        scores=scores,
        absent=missing,
        curves=curves(tested.values()),
        blocks=blocks,
        notes=(*notes, *(() if blocks else ("No trial has finished yet.",))),
        partial=partial or total > len(done) or not blocks,
        done=len(done),
        total=total,
        variance=sources_of_variance(frame, (*metrics, FIRST_METRICS[0])[0]),
        commands=_commands(blocks, tested),
    )


def _trials(table: pandas.DataFrame | Any) -> set[tuple[str, int]]:
    """Return the trials of a frame as (id that folds share, fold or 0)."""
    return {*zip(table["trial"], table["fold"].fillna(0), strict=True)}


def _all_folds(scores: pandas.DataFrame) -> set[tuple[str, int]]:
    """Return every fold of the trials that have a score for at least one fold."""
    with_folds: Any = scores[scores["fold"].notna()]
    folds = with_folds.drop_duplicates("trial")
    if folds.empty:
        return set()
    return {
        (trial, fold) for trial, n in zip(folds["trial"], folds["folds"], strict=True) for fold in range(1, n + 1)
    }


def _block(number: int, lines: Sequence[Any], part: Part, tested: dict[str, Record]) -> Block:
    """Return a block with its text."""
    dataset, backbone = part.block.place
    block = Block(
        number=number,
        dataset=dataset,
        backbone=backbone,
        lines=tuple(lines),
        metrics=part.metrics,
        shown=part.shown,
        summaries={summary.metric: summary for summary in part.summaries},
        factors=part.block.factors,
        findings=part.notes,
    )
    records = [tested[id] for row in block.rows for id in record_ids(row)]
    if records and block.factors:  # while only floors are measured, trained rows do not know their data
        block = replace(block, factors={**factors_of(records[0]), **block.factors})
    unlike = sorted({data_rules.unlike(record) for record in records} - {""})
    block = replace(block, unlike=", ".join(unlike), data=", ".join([dataset, *unlike]))
    loaded = {record.trial.backbone.pretrained is True for record in records}
    network = backbone.partition(".")[0] if loaded == {False} else backbone
    caption = captions.of_block(
        block,
        part.data,
        sorted({record.weights for record in records if record.weights}),
        next((n for record in records if (n := record.provenance.get("normalisation"))), None),
        part.tuned,
    )
    return replace(block, heading=captions.heading(block, network, part.block.differing), caption=caption)


def _commands(blocks: Sequence[Block], tested: dict[str, Record]) -> dict[str, tuple[str, bool]]:
    """Return the command for the first record of each row, by record id."""
    firsts = {ids[0] for block in blocks for row in block.rows if (ids := record_ids(row))}
    return {id: command(tested[id].trial, str(tested[id].grid.get("name", "GRID"))) for id in sorted(firsts)}
