"""Fair comparison as 26 rules, each a small function that reports what is wrong, with the values.

A rule checks one kind of subject

    grid        the settings of a grid, before anything runs
    data        a dataset with its split, before anything runs
    study       the searches that tuned the arms
    evaluator   the function that scores
    records     all results in a run folder
    table       a table before it is printed

with severity E (the run or the cell is refused) or W (it is printed with a mark). The files of this folder are the
register: a function with the decorator `rule` is a rule. The first line of its docstring is the requirement, the rest
is the reason. A rule has one function for each subject that can break it. The function yields (sentence, ids of the
records concerned); the decorator makes `Finding`s of them.

    rules.over_records(run.records(), run.failures(), run.requested().trials)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from harness import registry
from harness.fairness.comparability import factors_of
from harness.fairness.rules._subjects import Average, Number, RankTest, Results, Study, Table

if TYPE_CHECKING:
    import numpy as np

    from harness.config import Trial
    from harness.data.datasets import Dataset
    from harness.fairness.ledger import Ledger
    from harness.runs.record import Failure, Record

__all__ = [
    "Average",
    "Finding",
    "Number",
    "RankTest",
    "Results",
    "Rule",
    "Study",
    "Table",
    "all_rules",
    "factors_of",
    "over_data",
    "over_evaluator",
    "over_grid",
    "over_records",
    "over_studies",
    "over_tables",
    "rule",
]

Severity = Literal["E", "W"]
SUBJECTS = ("grid", "data", "study", "evaluator", "records", "table")


@dataclass(frozen=True)
class Finding:
    """A violation of a rule: a sentence that begins with the rule's id, and the ids of the records concerned.

    Severity E: the run or the cell is refused; W: it is printed with a mark. Without records it concerns the whole
    table.
    """

    rule: str
    severity: Severity
    sentence: str
    records: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule: its severities ("E", "W" or "E/W"), requirement (`title`), reason and subjects (`over`)."""

    id: str
    severity: str
    title: str
    reason: str
    over: tuple[str, ...]


@dataclass(frozen=True)
class _Check:
    """One function of a rule."""

    id: str
    severity: Severity
    over: str
    title: str
    reason: str
    function: Callable[..., Iterator[Finding]]


_checks: dict[tuple[str, str], _Check] = {}


def rule(id: str, severity: Severity, over: str):
    """Register a function that yields (sentence, record ids) as a check of rule `id` over one of `SUBJECTS`."""
    if over not in SUBJECTS:
        raise registry.RegisterError(registry.unknown("subject of a rule", over, SUBJECTS))

    def register(function: Callable[..., Iterator[tuple[str, Iterable[str]]]]) -> Callable[..., Iterator[Finding]]:
        @functools.wraps(function)
        def check(*subject: Any, **options: Any) -> Iterator[Finding]:
            for sentence, records in function(*subject, **options):
                yield Finding(id, severity, f"{id} {sentence}", tuple(records))

        title, _, reason = (inspect.getdoc(function) or "").partition("\n")
        reason = " ".join(reason.split())
        _checks[id, function.__name__] = _Check(id, severity, over, title.rstrip("."), reason, check)
        return check

    return register


def all_rules() -> tuple[Rule, ...]:
    """Return every rule, by id."""
    by_id: dict[str, list[_Check]] = {}
    for check in _all():
        by_id.setdefault(check.id, []).append(check)
    return tuple(
        Rule(
            id,
            "/".join(sorted({check.severity for check in checks})),
            checks[0].title,
            checks[0].reason,
            tuple(dict.fromkeys(check.over for check in checks)),
        )
        for id, checks in sorted(by_id.items())
    )


def over_grid(settings: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Check the settings of a grid as they are written in its file."""
    return _over("grid", settings)


def over_data(dataset: Dataset, split: np.ndarray) -> tuple[Finding, ...]:
    """Check a dataset under `split`, (n,) of "train", "validation", "test"."""
    return _over("data", dataset, split)


def over_studies(studies: Iterable[Study]) -> tuple[Finding, ...]:
    """Check that the searches of several arms are equal."""
    return _over("study", tuple(studies))


def over_evaluator(evaluate: Callable[..., Any], conformance: Callable[..., Sequence[str]]) -> tuple[Finding, ...]:
    """Check an evaluator; `conformance(evaluate)` returns its mistakes on cases with known scores."""
    return _over("evaluator", evaluate, conformance)


def over_records(
    records: Iterable[Record],
    failures: Iterable[Failure] = (),
    planned: Iterable[Trial] = (),
    ledger: Ledger | None = None,
) -> tuple[Finding, ...]:
    """Check the results of a run folder.

    `planned` are the trials that should exist. Without a `ledger`, test reads are not checked.
    """
    return _over("records", Results(tuple(records), tuple(failures), tuple(planned), ledger))


def over_tables(tables: Iterable[Table]) -> tuple[Finding, ...]:
    """Check the claims of tables."""
    return tuple(finding for table in tables for finding in _over("table", table))


def _over(subject: str, *given: Any) -> tuple[Finding, ...]:
    return tuple(finding for check in _all() if check.over == subject for finding in check.function(*given))


def _all() -> list[_Check]:
    """Return every check, by rule and then in the order of its file."""
    for name in registry.names(__name__):
        import_module(f"{__name__}.{name}")
    return sorted(_checks.values(), key=lambda check: check.id)
