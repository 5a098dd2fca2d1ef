"""The subjects of rules, as plain values: results of a run, searches, and tables before they are printed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.config import UNTRAINED, Trial
from harness.fairness.comparability import Comparable, Entry, Place, comparable_tables, factors_of, place_of
from harness.fairness.protocols import PROTOCOLS
from harness.runs.folds import by_seed
from harness.runs.record import Failure, Record

if TYPE_CHECKING:
    from harness.fairness.ledger import Ledger


@dataclass(frozen=True)
class Results:
    """The results in a run folder, grouped once for all rules. `ledger`: None if the test reads are unknown."""

    records: tuple[Record, ...]
    failures: tuple[Failure, ...] = ()
    planned: tuple[Trial, ...] = ()
    ledger: Ledger | None = None

    @cached_property
    def tested(self) -> tuple[Record, ...]:
        """The records of protocols that read the test, which tables consist of; search trials are left out."""
        return tuple(r for r in self.records if r.trial.protocol not in PROTOCOLS or _reads_test(r.trial))

    @cached_property
    def tables(self) -> tuple[RecordTable, ...]:
        """Tested records, one a seed, grouped by what they may be compared with; the largest of each place first.

        Of the floors, only the untrained network belongs to a table: the one that training starts from.
        """
        records = [r for r in by_seed(self.tested).records if r.level != "floor" or r.arm == UNTRAINED]
        tables = comparable_tables(entry_of(record) for record in records)
        grouped = [RecordTable.of(table) for table in tables]
        return tuple(sorted((t for t in grouped if t.records), key=lambda t: (t.place, -len(t.records))))


def entry_of(record: Record) -> Entry[Record]:
    """Return a record as it enters a table."""
    factors = factors_of(record)
    return Entry(place_of(record.trial), record.arm, record.level, record.trial.seed, factors, True, record)


@dataclass(frozen=True)
class RecordTable:
    """The records of a table of comparable numbers, without floors.

    untrained  by seed, the test record of the network before training
    """

    place: Place
    factors: dict[str, Any]
    records: tuple[Record, ...]
    untrained: dict[int, Record]

    @classmethod
    def of(cls, table: Comparable[Record]) -> RecordTable:
        """Return the records of a table in which every entry has one."""
        records = [entry.of for entry in table.entries]
        untrained = {record.trial.seed: record for record in records if record.arm == UNTRAINED}
        return cls(table.place, table.factors, tuple(r for r in records if r.level != "floor"), untrained)

    @property
    def name(self) -> str:
        return "/".join(self.place)

    @cached_property
    def arms(self) -> dict[str, dict[int, Record]]:
        """Arm → seed → record; of two records of a seed, the first."""
        arms: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in self.records:
            arms[record.arm].setdefault(record.trial.seed, record)
        return dict(arms)

    @cached_property
    def baselines(self) -> dict[str, str]:
        """Arm → its baseline, for every arm whose baseline is another arm."""
        return {record.arm: record.baseline for record in self.records if record.baseline != record.arm}


def cell_of(record: Record) -> str:
    """Return dataset, backbone and arm: `glyphs/test_resnet/contrastive+embedding`."""
    return "/".join((*place_of(record.trial), record.arm))


def counted(records: Sequence[Record]) -> str:
    """Return the number of records in words: `1 record`, `2 records`."""
    return f"{len(records)} record{'s' * (len(records) != 1)}"


def _reads_test(trial: Trial) -> bool:
    return PROTOCOLS[trial.protocol].reads_test


def ids(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the ids of stored records, in order; for a mean over folds, those of the folds."""
    return tuple(part.id for record in records for part in record.parts)


@dataclass(frozen=True)
class Study:
    """The search that tuned one arm.

    place     dataset and backbone, such as "glyphs/test_resnet": arms of one place are compared
    arm       such as "contrastive+embedding"
    trials    the budget of the arm, in trials
    made      trials that have ended, including failed ones
    declared  the space at the start of the study: for each setting {"low", "high", "log"} or {"choices"}
    space     the space now; it must equal `declared`
    defaults  the settings of trial 0, which may be outside the space
    tried     the settings of every trial
    chosen    the best settings; None until the search has ended
    used      the settings of every final trial
    """

    place: str
    arm: str
    trials: int
    made: int
    declared: Mapping[str, Mapping[str, Any]]
    space: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tried: Sequence[Mapping[str, Any]] = ()
    chosen: Mapping[str, Any] | None = None
    used: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Number:
    """One number of a table before it is printed.

    row, column  such as "contrastive+embedding" and "cub200 R@1"
    mean         the number, a fraction
    half, method half the width after ±, and its meaning: "95 % t-interval over 5 training seeds"
    n            the number of values that it is the mean of
    minus        the row that was subtracted, if the number is a difference
    ranked       whether it may be bold: floors and rows of few seeds may not
    bold, grey   how it is printed
    p            corrected p of the test against the best of its column; None without a test
    source       where it was published; None for a number measured here
    """

    row: str
    column: str
    mean: float
    half: float | None = None
    method: str = ""
    n: int = 1
    minus: str | None = None
    ranked: bool = True
    bold: bool = False
    grey: bool = False
    p: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Average:
    """The datasets that a row is averaged over."""

    row: str
    datasets: frozenset[str]


@dataclass(frozen=True)
class RankTest:
    """A rank test, such as Wilcoxon's signed-rank test, and the number of datasets it is over."""

    name: str
    datasets: int


@dataclass(frozen=True)
class Table:
    """A table before it is printed: its numbers and the records they come from.

    correction, level: of the tests behind bold, such as "Holm" and 0.05; empty if there is no correction.
    """

    name: str
    numbers: tuple[Number, ...] = ()
    records: tuple[Record, ...] = ()
    averages: tuple[Average, ...] = ()
    rank_tests: tuple[RankTest, ...] = ()
    correction: str = ""
    level: float = 0.05
