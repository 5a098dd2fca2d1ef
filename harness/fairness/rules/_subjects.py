"""What rules look at, as plain values: results of a run, searches, and tables about to be printed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.config import FLOORS, Trial
from harness.fairness.comparability import Comparable, Entry, Place, comparable_tables, place_of
from harness.fairness.protocols import PROTOCOLS
from harness.runs.folds import by_seed
from harness.runs.record import Failure, Record

if TYPE_CHECKING:
    from harness.fairness.ledger import Ledger

UNTRAINED = FLOORS[0]


@dataclass(frozen=True)
class Results:
    """What a run folder holds, grouped once for all rules. `ledger`: None where its reads are not known."""

    records: tuple[Record, ...]
    failures: tuple[Failure, ...] = ()
    planned: tuple[Trial, ...] = ()
    ledger: Ledger | None = None

    @cached_property
    def tested(self) -> tuple[Record, ...]:
        """Records of protocols that read the test, of which tables are made; search trials are not among them."""
        return tuple(r for r in self.records if r.trial.protocol not in PROTOCOLS or _reads_test(r.trial))

    @cached_property
    def tables(self) -> tuple[RecordTable, ...]:
        """Tested records, one a seed, grouped by what they may be compared with; the largest of each place first.

        Of the floors, only the untrained network belongs to a table: the one that training starts from.
        """
        records = [r for r in by_seed(self.tested).records if r.level != "floor" or r.arm == UNTRAINED]
        tables = comparable_tables([Entry(r.trial, r.arm, r.level, r) for r in records])
        found = [RecordTable.of(table) for table in tables]
        return tuple(sorted((t for t in found if t.records), key=lambda t: (t.place, -len(t.records))))


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
    def of(cls, table: Comparable[Entry]) -> RecordTable:
        """Return the records of a table in which every entry has one."""
        records = [entry.record for entry in table.entries if entry.record is not None]
        untrained = {record.trial.seed: record for record in records if record.arm == UNTRAINED}
        return cls(table.place, table.factors, tuple(r for r in records if r.level != "floor"), untrained)

    @property
    def name(self) -> str:
        return "/".join(self.place)

    @cached_property
    def arms(self) -> dict[str, dict[int, Record]]:
        """{arm: {seed: record}}; of two records of a seed, the first."""
        arms: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in self.records:
            arms[record.arm].setdefault(record.trial.seed, record)
        return dict(arms)

    @cached_property
    def baselines(self) -> dict[str, str]:
        """{arm: the arm it is compared with} for every arm that has another one as its baseline."""
        return {record.arm: record.baseline for record in self.records if record.baseline != record.arm}


def cell_of(record: Record) -> str:
    """`glyphs/test_resnet/contrastive+embedding`, what seeds repeat."""
    return "/".join((*place_of(record.trial), record.arm))


def _reads_test(trial: Trial) -> bool:
    return PROTOCOLS[trial.protocol].reads_test


def ids(records: Iterable[Record]) -> tuple[str, ...]:
    """The ids of records as they are stored, in their order: of a mean over folds those of the folds."""
    return tuple(part.id for record in records for part in record.parts)


@dataclass(frozen=True)
class Study:
    """The search that tuned one arm.

    place     dataset and backbone, such as "glyphs/test_resnet": arms of one place are compared
    arm       such as "contrastive+embedding"
    trials    how many trials the arm was given
    made      how many have ended, failed ones included
    declared  the space as it was when the study began: for each setting {"low", "high", "log"} or {"choices"}
    space     the space now; another one than `declared` is a change under way
    defaults  the settings that trial 0 has; they need not lie in the space
    tried     the settings of every trial
    chosen    the settings that won; None while the search goes on
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
    """One number of a table, as it is about to be printed.

    row, column  such as "contrastive+embedding" and "cub200 R@1"
    mean         the number, a fraction
    half, method half the width behind ±, and what it is: "95 % t-interval over 5 training seeds"
    n            how many values it is the mean of
    minus        the row that was subtracted, where the number is a difference
    ranked       whether it takes part in the comparison behind bold: floors and rows of few seeds do not
    bold, grey   how it is set
    p            of the test against the best of its column, corrected; None where none was made
    source       where it was published; None for what was measured here
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
    """A row's mean over datasets: over which."""

    row: str
    datasets: frozenset[str]


@dataclass(frozen=True)
class RankTest:
    """A test of ranks over datasets, such as Wilcoxon's signed ranks, and over how many."""

    name: str
    datasets: int


@dataclass(frozen=True)
class Table:
    """A table about to be printed: its numbers and the records they come from.

    correction, level: of the tests behind bold, such as "Holm" and 0.05; no correction: none was made.
    """

    name: str
    numbers: tuple[Number, ...] = ()
    records: tuple[Record, ...] = ()
    averages: tuple[Average, ...] = ()
    rank_tests: tuple[RankTest, ...] = ()
    correction: str = ""
    level: float = 0.05
