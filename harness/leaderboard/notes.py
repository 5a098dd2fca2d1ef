"""What to doubt: notes on a block, each a sentence with the rows that it concerns.

Every sentence is made from the rows and records it speaks of, so that none can claim what was not computed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas

from harness.errors import some
from harness.leaderboard.columns import lines
from harness.leaderboard.comparisons import ALPHA, Summary
from harness.leaderboard.rows import Row
from harness.leaderboard.scores import PROVENANCE
from harness.leaderboard.statistics import LEAST_SEEDS

BELOW = "FAIR-26"  # a row below its own starting point: ‡, with the numbers of every such row
SIZES = (
    *(f"{part}_{what}" for part in ("train", "validation", "test") for what in ("images", "classes")),
    *("test_queries", "test_excluded"),
)
ORIGIN = ("device", "revision", "sources", "uncommitted", "initial_weights")  # of the provenance


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


def details(scores: pandas.DataFrame) -> dict[str, Any]:
    """Return what notes and captions say of records, by their id: seed, steps, notes, origin, sizes of the splits."""
    records = scores.drop_duplicates("record")
    origin = records.reindex(columns=[f"{PROVENANCE}{name}" for name in ORIGIN])
    table = pandas.concat([records, origin.set_axis(list(ORIGIN), axis=1)], axis=1)
    table["traced"] = records[[name for name in records if name.startswith(PROVENANCE)]].notna().any(axis=1)
    names = ("record", "arm", "level", "seed", "steps", "notes", "traced", *ORIGIN, *SIZES)
    return {line.record: line for line in lines(table, names)}


def of_block(
    place: tuple[str, str],
    rows: Sequence[Row],
    ids: Sequence[str],
    of_seed: Mapping[str, Any],
    of_record: Mapping[str, Any],
    unusable: Mapping[str, Sequence[str]],
    summaries: Sequence[Summary] = (),
    findings: Sequence[Any] = (),
) -> tuple[Note, ...]:
    """Return what to know before believing a block.

    ids        the seeds of the block, those that repeat another among them
    of_seed    details of the seeds, `of_record` those of the stored records behind them
    unusable   the metrics of a seed that are not finite
    summaries  of the metrics that tables print
    findings   of the fairness rules; they add what is not said here
    """
    trained = [part for row in rows if not row.floor for part in row.parts]
    used = {record.record for row in rows for record in row.records}
    repeated = [of_seed[id] for id in ids if id not in used]
    parts = [of_record[id] for id in trained] + [of_record[one.record] for one in repeated if one.record in of_record]
    own = (
        *_few_seeds(rows),
        *_unlike_baseline(rows, of_seed),
        *(_best(place[0], rows, summary) for summary in summaries if _decided(summary)),
        *_incomplete(place, rows),
        *_left_out(rows, repeated, unusable),
        *_origins([part for part in parts if part.level != "floor"]),
        *_own_words(rows, of_seed),
    )
    said = {note.rule for note in own}
    arms = {part: row.arm for row in rows for part in row.parts}
    everywhere = set(arms.values())
    further = []
    for finding in findings:
        named = tuple(dict.fromkeys(arms[id] for id in finding.records if id in arms))
        if named:
            whole = set(named) == everywhere and len(everywhere) > 1
            note = Note(finding.sentence, () if whole else named, finding.severity)
            further.append(replace(note, common=note.rule != BELOW))
    return (*own, *(note for note in dict.fromkeys(further) if note.rule not in said))


def condensed(notes: Sequence[Note]) -> tuple[str, ...]:
    """Return the sentences for print: of those in which a rule says much the same of many rows, the first."""
    by_rule: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        by_rule[note.rule if note.common else note.sentence].append(note)
    return tuple(
        alike[0].sentence + (f" (and {len(alike) - 1} more of {rule})" if len(alike) > 1 else "")
        for rule, alike in by_rule.items()
    )


def _few_seeds(rows: Sequence[Row]) -> Iterator[Note]:
    few: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if 0 < len(row.seeds) < LEAST_SEEDS and not row.floor:
            few[len(row.seeds)].append(row.arm)
    trained = sum(len(row.seeds) > 0 for row in rows if not row.floor)
    for n, arms in sorted(few.items()):
        which = "" if len(arms) == trained else f" ({listed(arms)})"
        yield Note(f"FAIR-11 n={n}: printed without an interval{which}.", tuple(arms))


def _decided(summary: Summary) -> bool:
    """Whether there is something to say of who is best beyond what the caption says of all columns."""
    return bool(summary.best) or "higher" in summary.unmarked


def _best(dataset: str, rows: Sequence[Row], summary: Summary) -> Note:
    if not summary.best:
        return Note(f"FAIR-14 {dataset} {summary.metric}: no row is marked as best: {summary.unmarked}.")
    tied = f"{summary.tied or 'no'} row{'s' * (summary.tied != 1)} not separable (Holm, {ALPHA})"
    return Note(f"FAIR-14 {dataset} {summary.metric}: best {100 * summary.best_mean:.1f}; {tied}.")


def _incomplete(place: tuple[str, str], rows: Sequence[Row]) -> Iterator[Note]:
    for row in rows:
        if row.line["state"] in ("fail", "partial"):
            yield Note(f"FAIR-20 {'/'.join(place)}/{row.arm}: {row.line['reason']}.", (row.arm,))


def _unlike_baseline(rows: Sequence[Row], of_seed: Mapping[str, Any]) -> Iterator[Note]:
    """Variants whose seeds or steps are not those of their baseline, which stands before them."""
    base = None
    for row in rows:
        if not row.variant:
            base = row
        elif base is not None and row.seeds and base.seeds:
            if row.seeds != base.seeds:
                both = set(row.seeds) & set(base.seeds)
                used = f"using {_set(both)}" if both else "no difference"
                sentence = f"FAIR-12 {row.arm} has seeds {_set(row.seeds)}, its baseline {_set(base.seeds)}: {used}."
                yield Note(sentence, (row.arm,))
            steps, others = ({of_seed[record.record].steps for record in each.records} for each in (row, base))
            if steps != others:
                sentence = f"FAIR-07 {row.arm} trained {_set(steps)} steps, its baseline {_set(others)}."
                yield Note(sentence, (row.arm,))


def _left_out(rows: Sequence[Row], repeated: Sequence[Any], unusable: Mapping[str, Sequence[str]]) -> Iterator[Note]:
    """Scores and records that are in no mean."""
    for row in rows:
        for record in row.records:
            for metric in sorted(unusable.get(record.record, ())):
                sentence = f"FAIR-22 {row.arm} seed {record.seed}: {metric} is not finite; left out of the mean."
                yield Note(sentence, (row.arm,))
    for record in repeated:
        yield Note(f"FAIR-08 {record.record} repeats an arm and seed of this table: left out.", (record.arm,))


def _origins(records: Sequence[Any]) -> Iterator[Note]:
    """Trained records that differ in machine, code or initial weights, none of which a table splits by."""
    devices = sorted({record.device for record in records if record.device})
    if len(devices) > 1:
        yield Note(f"FAIR-07 trained on {listed(devices)}: training times compare devices too.")
    revisions = sorted({_revision(record) for record in records if record.traced})
    if len(revisions) > 1:
        yield Note(f"FAIR-23 records of {len(revisions)} states of the code: {listed(revisions)}.")
    begun: dict[int, set[str]] = defaultdict(set)
    for record in records:
        if record.initial_weights:
            begun[record.seed].add(record.initial_weights)
    if seeds := [seed for seed, weights in sorted(begun.items()) if len(weights) > 1]:
        yield Note(f"FAIR-08 initial weights differ between arms of seed {listed(map(str, seeds))}.")


def _revision(record: Any) -> str:
    name = str(record.revision or record.sources or "unknown")[:10]
    return f"{name} with changes {record.uncommitted}" if record.uncommitted else name


def _own_words(rows: Sequence[Row], of_seed: Mapping[str, Any]) -> Iterator[Note]:
    """What trials noted themselves, once, with the arms that noted it, and their seeds where not all of them did."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        seeds: dict[str, list[int]] = defaultdict(list)
        for record in row.records:
            for note in (of_seed[record.record].notes or "").splitlines():
                seeds[note.rstrip(".")].append(record.seed)
        for note, noted in seeds.items():
            which = "" if len(noted) == len(row.records) else f" seed {', '.join(map(str, noted))}"
            said[note][row.arm] = row.arm + which
    for note, who in sorted(said.items()):
        yield Note(f"{note} ({listed(who.values())}).", tuple(who))


def listed(names: Iterable[str]) -> str:
    """Return the names as a caption has room for them."""
    return some(names, 8)


def _set(values: Iterable[int]) -> str:
    return "{" + ",".join(map(str, sorted(values))) + "}"
