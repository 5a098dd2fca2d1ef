"""All fairness rules over a run folder: its grids, searches, records, tables, and the evaluator at hand."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.config import Arm, Trial
from harness.evaluation.conformance import conformance
from harness.evaluation.retrieval import evaluate
from harness.fairness import rules
from harness.fairness.ledger import Ledger
from harness.fairness.rules import Finding, Number, Study, Table
from harness.leaderboard import published, tables
from harness.leaderboard.comparisons import ALPHA, MARKS_FROM
from harness.leaderboard.statistics import holm, paired_difference, places
from harness.leaderboard.tables import Block, Cell, Row
from harness.runs.record import Failure, Record
from harness.runs.run import Run


def audit(run: Run) -> tuple[Finding, ...]:
    """Everything the rules find, by rule; of each rule, what is graver first.

    The records of a search (in `run`/search) are looked at too, but make no rows.
    """
    asked, search = run.requested(), run.sub("search")
    records, failures, searched = run.records(), run.failures(), search.records()
    board = tables.leaderboard(records, failures, asked.trials, asked.refused, published=published.load())
    found = [
        *(finding for grid in asked.grids for finding in rules.over_grid(grid.model_dump(mode="json"))),
        *rules.over_evaluator(evaluate, conformance),
        *rules.over_studies(studies(search, [*searched, *search.failures()], records)),
        *rules.over_records([*records, *searched], failures, asked.trials, Ledger.of(run)),
        *rules.over_tables(map(as_table, board.blocks)),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: (finding.rule, finding.severity)))


def studies(search: Run, ended: Sequence[Record | Failure], records: Iterable[Record]) -> Iterator[Study]:
    """The search of every tuned arm, from what it declared, its trials that have ended, and the final records."""
    declared = search.declared()
    tried, used = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for one in ended:
        tried["/".join(one.trial.cell)][one.trial.whole.id].append(one.trial)
    for record in records:
        if record.trial.protocol == "tuned" and record.level != "floor":
            used["/".join(record.trial.cell)].append(record.trial)
    for name in {**declared, **used}:
        place, _, arm = name.rpartition("/")
        about = declared.get(name, {"space": {}, "trials": 0})
        space, proposals = about["space"], list(tried[name].values())  # each of one trial, or of one a fold
        yield Study(
            place,
            arm,
            trials=about["trials"],
            made=sum(len(trials) == len(trials[0].whole.each_fold()) for trials in proposals),
            declared=space,
            space=space,
            defaults=_settings(Arm.parse(arm), space),
            tried=[_of_trial(trials[0], space) for trials in proposals],
            chosen=about.get("chosen"),
            used=[_of_trial(trial, space) for trial in used[name]],
        )


def _of_trial(trial: Trial, space: Iterable[str]) -> dict[str, Any]:
    return {**({"lr": trial.training.lr} if "lr" in space else {}), **_settings(trial.arm, space)}


def _settings(arm: Arm, space: Iterable[str]) -> dict[str, Any]:
    """The values an arm gives to the searched names "loss.…" and "metrix.…"."""
    values = {f"loss.{key}": value for key, value in arm.options.items()}
    if arm.metrix is not None:
        values |= {f"metrix.{key}": value for key, value in arm.metrix}
    return {name: values[name] for name in space if name in values}


def as_table(block: Block) -> Table:
    """A block of the leaderboard as the rules look at it. Who may be the best is tested here once more."""
    place = f"{block.dataset}/{block.backbone}"
    numbers: list[Number] = []
    for metric in block.metrics:
        column = f"{place} {metric}"
        cells = [(row, row.cells[metric]) for row in block.rows if metric in row.cells]
        ranked = [(row, cell) for row, cell in cells if not row.floor and cell.n >= MARKS_FROM]
        p_of = _against_the_best(ranked)
        for row, cell in cells:
            numbers.append(
                Number(
                    row.name,
                    column,
                    cell.mean,
                    cell.half,
                    cell.interval.method,
                    cell.n,
                    ranked=row.arm in p_of,
                    bold=cell.best,
                    p=p_of.get(row.arm),
                )
            )
            if cell.paired is not None:
                paired = cell.paired
                half = cell.difference_half
                numbers.append(Number(row.name, f"Δ {column}", paired.mean, half, paired.method, paired.n, row.loss))
        numbers += [
            Number(f"{other.arm} ({other.short})", column, other.values[metric], grey=True, source=other.source)
            for other in block.published
            if metric in other.values
        ]
    records = tuple(record for row in block.rows for record in row.records)
    return Table(place, tuple(numbers), records, correction="Holm", level=ALPHA)


def _against_the_best(ranked: Sequence[tuple[Row, Cell]]) -> dict[str, float | None]:
    """{arm: p against the highest mean, corrected by Holm}; 0 where the same is lost with every seed."""
    if len(ranked) < 2:
        return {}
    place = places({i: cell.mean for i, (_, cell) in enumerate(ranked)})
    (best, highest), *others = (ranked[i] for i in sorted(place, key=place.get))
    pairs = [paired_difference(highest.by_seed, cell.by_seed) for _, cell in others]
    adjusted = holm([pair.p if pair.n >= MARKS_FROM else math.nan for pair in pairs])
    found: dict[str, float | None] = {best.arm: None}
    for (row, _), pair, p in zip(others, pairs, adjusted.tolist(), strict=True):
        found[row.arm] = None if pair.n < MARKS_FROM else 0.0 if math.isnan(p) else p
    return found
