"""What to doubt: notes on a block, each a sentence with the rows that it concerns.

Most are the findings of the fairness rules, in the words of the rules. Who is best, and what trials noted themselves,
is said here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas

from harness.errors import first_few
from harness.leaderboard.columns import lines
from harness.leaderboard.comparisons import ALPHA, Summary
from harness.leaderboard.rows import Row

BELOW = "FAIR-26"  # a row below its own starting point: ‡, with the numbers of every such row
DETAILS = (
    *("record", "notes", "test_queries", "test_excluded"),
    *(f"{part}_{what}" for part in ("train", "validation", "test") for what in ("images", "classes")),
)


@dataclass(frozen=True)
class Note:
    """One thing to know before believing a table: a sentence, led by its rule where it has one.

    `arms` are the rows it concerns, () the whole table; severity E: what it names should not stand here at all;
    `common`: its rule may say much the same of many rows.
    """

    sentence: str
    arms: tuple[str, ...] = ()
    severity: str = "W"
    common: bool = False

    @property
    def rule(self) -> str:
        """The fairness rule, FAIR-01 to FAIR-26, or nothing."""
        return self.sentence.partition(" ")[0] if self.sentence.startswith("FAIR-") else ""

    @property
    def of_all(self) -> bool:
        """Whether a rule says it of every row of the table."""
        return self.common and not self.arms

    def of(self, arm: str) -> bool:
        """Whether it is said of this row."""
        return self.of_all or arm in self.arms


def details(seeds: pandas.DataFrame) -> dict[str, Any]:
    """Return what trials noted and how large their splits are, by the id of the record."""
    return {line.record: line for line in lines(seeds.drop_duplicates("record"), DETAILS)}


def of_block(
    dataset: str,
    rows: Sequence[Row],
    arms: Mapping[str, str],
    of_seed: Mapping[str, Any],
    summaries: Sequence[Summary] = (),
    findings: Sequence[Any] = (),
) -> tuple[Note, ...]:
    """Return what to know before believing a block.

    arms       the arm of each of its records, by id, those that repeat a seed among them
    of_seed    `details` of its seeds
    summaries  of the metrics that tables print
    findings   of the fairness rules
    """
    everywhere = set(arms.values())
    found = [
        *(_best(dataset, summary) for summary in summaries if _decided(summary)),
        *_of_trials(rows, of_seed),
    ]
    rules = {note.rule for note in found}
    for finding in findings:
        if finding.sentence.partition(" ")[0] in rules:
            continue  # the trial has said it itself
        named = tuple(dict.fromkeys(arms[id] for id in finding.records if id in arms))
        if named:
            whole = set(named) == everywhere and len(everywhere) > 1
            note = Note(finding.sentence, () if whole else named, finding.severity)
            found.append(replace(note, common=note.rule != BELOW))
    return tuple(dict.fromkeys(found))


def condensed(notes: Sequence[Note]) -> tuple[str, ...]:
    """Return the sentences for print: of those in which a rule says much the same of many rows, the first."""
    by_rule: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        by_rule[note.rule if note.common else note.sentence].append(note)
    return tuple(
        alike[0].sentence + (f" (and {len(alike) - 1} more of {rule})" if len(alike) > 1 else "")
        for rule, alike in by_rule.items()
    )


def _decided(summary: Summary) -> bool:
    """Whether there is something to say of who is best beyond what the caption says of all columns."""
    return bool(summary.best) or "higher" in summary.unmarked


def _best(dataset: str, summary: Summary) -> Note:
    if not summary.best or summary.best_mean is None:
        return Note(f"FAIR-14 {dataset} {summary.metric}: no row is marked as best: {summary.unmarked}.")
    tied = f"{summary.tied or 'no'} row{'s' * (summary.tied != 1)} not separable (Holm, {ALPHA})"
    return Note(f"FAIR-14 {dataset} {summary.metric}: best {100 * summary.best_mean:.1f}; {tied}.")


def _of_trials(rows: Sequence[Row], of_seed: Mapping[str, Any]) -> Iterator[Note]:
    """What trials noted themselves, once, with the arms that noted it, and their seeds where not all of them did."""
    noted: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        seeds: dict[str, list[int]] = defaultdict(list)
        for record in row.records:
            for note in (of_seed[record.record].notes or "").splitlines():
                seeds[note.rstrip(".")].append(record.seed)
        for note, some_seeds in seeds.items():
            which = "" if len(some_seeds) == len(row.records) else f" seed {', '.join(map(str, some_seeds))}"
            noted[note][row.arm] = row.arm + which
    for note, arms in sorted(noted.items()):
        yield Note(f"{note} ({listed(arms.values())}).", tuple(arms))


def listed(names: Iterable[str]) -> str:
    """Return the names as a caption has room for them."""
    return first_few(names, 8)
