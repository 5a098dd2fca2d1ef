"""What rules look at, as plain values: results of a run, searches, and tables about to be printed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.config import FLOORS, Trial
from harness.evaluation.editions import edition_of
from harness.fairness.protocols import PROTOCOLS
from harness.runs.folds import by_seed
from harness.runs.record import Failure, Record

if TYPE_CHECKING:
    from harness.fairness.ledger import Ledger

Place = tuple[str, str]  # dataset, backbone
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
    def tables(self) -> tuple[Comparable, ...]:
        """Tested records, one a seed, by what they may be compared with, the largest table of each place first.

        Floors are not among the records of a table; the untrained network goes to every table that starts from it.
        """
        tables: dict[str, Comparable] = {}
        records = by_seed(self.tested).records
        for record in records:
            if record.level != "floor":
                factors = factors_of(record)
                key = json.dumps(factors, sort_keys=True, default=str)
                tables.setdefault(key, Comparable(place_of(record.trial), factors)).records.append(record)
        for record in records:
            if record.arm == UNTRAINED:
                for table in tables.values():
                    table.start_from(record)
        return tuple(sorted(tables.values(), key=lambda table: (table.place, -len(table.records))))


@dataclass
class Comparable:
    """Records that may stand in one table: one dataset, one backbone, one value of each shared factor."""

    place: Place
    factors: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    untrained: dict[int, Record] = field(default_factory=dict)  # seed → the network before training, tested

    @property
    def name(self) -> str:
        return "/".join(self.place)

    def start_from(self, untrained: Record) -> None:
        """Take the record of an untrained network if this table's training began there.

        It did if all settings but those of training agree. Of two records of a seed, the one whose training settings
        agree too is taken.
        """
        if place_of(untrained.trial) != self.place:
            return
        factors = {key: value for key, value in factors_of(untrained).items() if key != "weights"}
        differing = [key for key, value in factors.items() if self.factors.get(key, value) != value]
        if all(key.startswith("training.") for key in differing):
            if not differing:
                self.untrained[untrained.trial.seed] = untrained
            self.untrained.setdefault(untrained.trial.seed, untrained)

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


def place_of(trial: Trial) -> Place:
    """(dataset, backbone)"""
    return trial.dataset.name, trial.backbone.name


def cell_of(record: Record) -> str:
    """`glyphs/test_resnet/contrastive+embedding`, what seeds repeat."""
    return "/".join((*place_of(record.trial), record.arm))


def factors_of(record: Record) -> dict[str, Any]:
    """Whatever must be equal for two numbers to stand in one table (FAIR-08, FAIR-25)."""
    data, origin = record.data, record.provenance
    factors = dict(record.trial.shared)
    factors |= {f"protocol.{key}": value for key, value in record.protocol.items()}
    factors |= {"evaluator": edition_of(origin.get("evaluator")), "weights": record.weights}
    for name in ("index_fingerprint", "pixel_fingerprint", "split_fingerprint"):
        factors[f"data.{name}"] = getattr(data, name)
    if record.trial.backbone.pretrained:
        factors["weights_digest"] = origin.get("initial_weights")
    return factors


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
