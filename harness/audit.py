"""All fairness rules over a run folder: its grids, searches, records, tables, and the evaluator at hand."""

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
from harness.leaderboard.comparisons import ALPHA, MARKS_FROM, against_the_best
from harness.leaderboard.tables import Block
from harness.runs.record import Failure, Record
from harness.runs.run import Run


def audit(run: Run) -> tuple[Finding, ...]:
    """Return everything that the rules find, by rule, errors before warnings.

    The records of a search (in `run`/search) are checked too, but make no rows.
    """
    plan, search = run.requested(), run.sub("search")
    records, failures, searched = run.records(), run.failures(), search.records()
    board = tables.leaderboard(records, failures, plan.trials, plan.refused, published=published.load())
    found = [
        *(finding for grid in plan.grids for finding in rules.over_grid(grid.model_dump(mode="json"))),
        *rules.over_evaluator(evaluate, conformance),
        *rules.over_studies(studies(search, [*searched, *search.failures()], records)),
        *rules.over_records([*records, *searched], failures, plan.trials, Ledger.of(run)),
        *rules.over_tables(map(as_table, board.blocks)),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: (finding.rule, finding.severity)))


def studies(search: Run, ended: Sequence[Record | Failure], records: Iterable[Record]) -> Iterator[Study]:
    """Yield the search of every tuned arm, from what it declared, its ended trials, and the final records."""
    declared = search.declared()
    tried, used = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for result in ended:
        tried["/".join(result.trial.cell)][result.trial.whole.id].append(result.trial)
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
    """Return the values that an arm gives to the searched names "loss.…" and "metrix.…"."""
    values = {f"loss.{key}": value for key, value in arm.options.items()}
    if arm.metrix is not None:
        values |= {f"metrix.{key}": value for key, value in arm.metrix}
    return {name: values[name] for name in space if name in values}


def as_table(block: Block) -> Table:
    """Return a block of the leaderboard as the rules look at it."""
    place = f"{block.dataset}/{block.backbone}"
    numbers: list[Number] = []
    for metric in block.metrics:
        column = f"{place} {metric}"
        cells = [(row, row.cells[metric]) for row in block.rows if metric in row.cells]
        ranked = {i: cell for i, (row, cell) in enumerate(cells) if not row.floor and cell.n >= MARKS_FROM}
        best, p_of = against_the_best(ranked) if len(ranked) > 1 else (None, {})
        for i, (row, cell) in enumerate(cells):
            numbers.append(
                Number(
                    row.name,
                    column,
                    cell.mean,
                    cell.half,
                    cell.interval.method,
                    cell.n,
                    ranked=i in {best, *p_of},
                    bold=cell.best,
                    p=p_of.get(i),
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
