"""Notes on a block: sentences about what to doubt, each with the rows that it concerns.

Most notes are findings of the fairness rules. The notes on the best row, and those that trials recorded themselves,
are written here.
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
    """One thing to know before trusting a table.

    sentence  the text, which begins with the name of its rule if it has one
    arms      the rows that it concerns; () for the whole table
    severity  E for an error: the rows should not be in the table; W for a warning
    common    whether the rule may give similar notes for many rows
    """

    sentence: str
    arms: tuple[str, ...] = ()
    severity: str = "W"
    common: bool = False

    @property
    def rule(self) -> str:
        """The fairness rule, FAIR-01 to FAIR-26; "" without one."""
        return self.sentence.partition(" ")[0] if self.sentence.startswith("FAIR-") else ""

    @property
    def of_all(self) -> bool:
        """Whether a rule applies it to every row of the table."""
        return self.common and not self.arms

    def concerns(self, arm: str) -> bool:
        """Return whether the note applies to this arm."""
        return self.of_all or arm in self.arms


def details(seeds: pandas.DataFrame) -> dict[str, Any]:
    """Return the notes of trials and the sizes of their splits, by record id."""
    return {line.record: line for line in lines(seeds.drop_duplicates("record"), DETAILS)}


def of_block(
    dataset: str,
    rows: Sequence[Row],
    arms: Mapping[str, str],
    details_by_record: Mapping[str, Any],
    summaries: Sequence[Summary] = (),
    findings: Sequence[Any] = (),
) -> tuple[Note, ...]:
    """Return the notes on a block.

    arms               the arm of each record, by id, including records that repeat a seed
    details_by_record  the `details` of its seeds
    summaries          summaries of the metrics that tables print
    findings           findings of the fairness rules
    """
    all_arms = set(arms.values())
    all_notes = [
        *(_best(dataset, summary) for summary in summaries if _decided(summary)),
        *_of_trials(rows, details_by_record),
    ]
    rules = {note.rule for note in all_notes}
    for finding in findings:
        if finding.sentence.partition(" ")[0] in rules:
            continue  # the trial recorded it itself
        named = tuple(dict.fromkeys(arms[id] for id in finding.records if id in arms))
        if named:
            every_arm = set(named) == all_arms and len(all_arms) > 1
            note = Note(finding.sentence, () if every_arm else named, finding.severity)
            all_notes.append(replace(note, common=note.rule != BELOW))
    return tuple(dict.fromkeys(all_notes))


def condensed(notes: Sequence[Note]) -> tuple[str, ...]:
    """Return the sentences to print. Of similar notes by one rule, return the first with the number of the rest."""
    by_rule: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        by_rule[note.rule if note.common else note.sentence].append(note)
    return tuple(
        alike[0].sentence + (f" (and {len(alike) - 1} more of {rule})" if len(alike) > 1 else "")
        for rule, alike in by_rule.items()
    )


def _decided(summary: Summary) -> bool:
    """Return whether the best row needs a note, beyond the general sentence in the caption."""
    return bool(summary.best) or "higher" in summary.unmarked


def _best(dataset: str, summary: Summary) -> Note:
    if not summary.best or summary.best_mean is None:
        return Note(f"FAIR-14 {dataset} {summary.metric}: no row is marked as best: {summary.unmarked}.")
    tied = f"{summary.tied or 'no'} row{'s' * (summary.tied != 1)} not separable (Holm, {ALPHA})"
    return Note(f"FAIR-14 {dataset} {summary.metric}: best {100 * summary.best_mean:.1f}; {tied}.")


def _of_trials(rows: Sequence[Row], details_by_record: Mapping[str, Any]) -> Iterator[Note]:
    """Yield each note that trials recorded, with its arms, and its seeds unless all seeds have it."""
    noted: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        seeds: dict[str, list[int]] = defaultdict(list)
        for record in row.records:
            for note in (details_by_record[record.record].notes or "").splitlines():
                seeds[note.rstrip(".")].append(record.seed)
        for note, noting_seeds in seeds.items():
            seed_list = "" if len(noting_seeds) == len(row.records) else f" seed {', '.join(map(str, noting_seeds))}"
            noted[note][row.arm] = row.arm + seed_list
    for note, arms in sorted(noted.items()):
        yield Note(f"{note} ({listed(arms.values())}).", tuple(arms))


def listed(names: Iterable[str]) -> str:
    """Return the first eight names, with the number of the rest."""
    return first_few(names, 8)
