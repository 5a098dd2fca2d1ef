"""Check a run folder against all fairness rules: its grids, searches, records and tables, and the evaluator."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.config import Arm, Trial
from harness.evaluation.conformance import conformance
from harness.evaluation.retrieval import evaluate
from harness.fairness import rules
from harness.fairness.ledger import Ledger
from harness.fairness.rules import Finding, Number, Study, Table
from harness.leaderboard import published
from harness.leaderboard.board import Block, record_ids
from harness.leaderboard.comparisons import ALPHA
from harness.leaderboard.compose import board_of
from harness.runs.folds import by_seed
from harness.runs.record import Failure, Record
from harness.runs.run import Run


def audit(run: Run) -> tuple[Finding, ...]:
    """Return all findings, sorted by rule, errors before warnings.

    The records of a search (in `run`/search) are checked too, but have no rows.
    """
    plan, search = run.requested(), run.sub("search")
    records, failures, searched = run.records(), run.failures(), search.records()
    by_id = {record.id: record for record in records}
    board = board_of(records, failures, plan.trials, plan.without_form, published=published.load())
    found = [
        *(finding for grid in plan.grids for finding in rules.over_grid(grid.model_dump(mode="json"))),
        *rules.over_evaluator(evaluate, conformance),
        *rules.over_studies(studies(search, [*searched, *search.failures()], records)),
        *rules.over_records([*records, *searched], failures, plan.trials, Ledger.of(run)),
        *rules.over_tables(as_table(block, by_id) for block in board.blocks),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: (finding.rule, finding.severity)))


def studies(search: Run, ended: Sequence[Record | Failure], records: Iterable[Record]) -> Iterator[Study]:
    """Yield the search of every tuned arm, given what it declared, its finished trials and the final records."""
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
        space, proposals = about["space"], list(tried[name].values())  # each is one trial, or one for every fold
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
    """Return the arm's values of the searched settings "loss.…", "metrix.…" and "rival.…"."""
    values = {f"loss.{key}": value for key, value in arm.options.items()}
    if arm.metrix is not None:
        values |= {f"metrix.{key}": value for key, value in arm.metrix}
    if arm.rival is not None:
        values |= {f"rival.{key}": value for key, value in arm.rival.options.items()}
    return {name: values[name] for name in space if name in values}


def as_table(block: Block, records: Mapping[str, Record]) -> Table:
    """Return a block of the leaderboard as the rules look at it; `records` by id are those behind it."""
    place = f"{block.dataset}/{block.backbone}"
    numbers: list[Number] = []
    for metric in block.metrics:
        column = f"{place} {metric}"
        for row in block.rows:
            if (cell := block.cell(row, metric)) is None:
                continue
            numbers.append(
                Number(
                    row.name,
                    column,
                    cell.mean,
                    cell.half,
                    cell.interval,
                    cell.n,
                    ranked=cell.compared,
                    bold=cell.best,
                    p=cell.best_p_holm,
                )
            )
            if cell.difference is not None:
                how, n = cell.difference_interval, cell.difference_n
                half, minus = cell.difference_half, row.baseline
                numbers.append(Number(row.name, f"Δ {column}", cell.difference, half, how, n, minus))
        for row in block.published:
            if (cell := block.cell(row, metric)) is not None:
                name = f"{row.arm} ({published.short(row.source)})"
                numbers.append(Number(name, column, cell.mean, grey=True, source=row.source))
    measured = tuple(records[id] for row in block.rows for id in record_ids(row))
    return Table(place, tuple(numbers), by_seed(measured).records, correction="Holm", level=ALPHA)
