"""The words of a leaderboard: captions that say what its numbers are, notes that say what to doubt.

Every sentence is made from the rows and records it speaks of, so that none can claim what was not computed.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.config import Trial
from harness.errors import some
from harness.fairness.protocols import PROTOCOLS
from harness.leaderboard.comparisons import ALPHA, Column, Variance
from harness.leaderboard.statistics import LEAST_SEEDS, Interval, PairedDifference
from harness.runs.record import Record

if TYPE_CHECKING:
    from harness.leaderboard.tables import Block, Cell, Leaderboard, Row

PARTS = ("train", "validation", "test")
BELOW = "FAIR-26"  # a row below its own starting point: ‡, with the numbers of every such row
TRACE = "metrix-bench trace RUN ARM"  # the command that leads from a number to its records


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


def of_leaderboard(
    board: "Leaderboard", *, styled: bool = True, published: str = "", every: bool = False
) -> tuple[str, ...]:
    """What the numbers and marks of every block are, of those that a format shows.

    `styled`: it prints bold and underlined; `published`: how it sets the rows of others apart, "" where it has none;
    `every`: it shows all metrics and not only those that tables print.
    """
    blocks = [replace(block, shown=block.metrics) if every else block for block in board.blocks]
    rows = [row for block in blocks for row in block.rows]
    records = [record for row in rows for record in row.parts]
    if not records:
        return ()
    said = [f"Protocol {name}." for name in _protocols(records)]
    said += _scores(blocks)
    if any(record.trial.folds for record in records):
        said.append(
            "Folds: a model for each, which validates on its part of the training classes and trains on the others; "
            "each reads the test once; costs are those of all folds together."
        )
    if ratios(rows):
        said.append("Training time (seconds inside training steps) and forward passes a step: × the own baseline.")
    said.append("Ties count against the model; a query is removed from its own neighbours by its index.")
    said += _marks(blocks, styled)
    if any(row.arm == "untrained" for row in rows):
        said.append("untrained: the same network with its initial weights.")
    if any(row.arm == "pixels" for row in rows):
        said.append("pixels: cosine of the raw images; nothing in it is random, so n = 1.")
    if published and any(block.published for block in blocks):
        said.append(f"{published}: as published elsewhere, under other protocols; none of our numbers uses them.")
    if board.variance is not None:
        said.append(_variance(board.variance))
    said.append(f"{TRACE} names the records behind every number.")
    return tuple(said)


def ratios(rows: Iterable["Row"]) -> bool:
    """Whether a row prints its time or passes as a ratio to its baseline, or a baseline its own passes as 1."""
    printed = ((row.relative_time, row.relative_passes, None if row.indent else row.passes) for row in rows)
    return any(ratio is not None for ratios in printed for ratio in ratios)


def _variance(variance: Variance) -> str:
    """What moves the score, largest share first; what explains less than one in a hundred is added up."""
    over = " × ".join(f"{n} {name}s" if not name.endswith("s") else f"{n} {name}es" for name, n in variance.sizes)
    large = [(" × ".join(factors), share) for factors, share in variance.shares if factors and share >= 0.01]
    said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in large)
    rest = 1 - sum(share for _, share in large)
    left = f"; left out for the grid to be complete: {listed(variance.left_out)}" if variance.left_out else ""
    return f"Variance of {variance.metric} over {over}: {said}, all else {100 * max(rest, 0.0):.0f} % (η²{left})."


def in_brief(
    blocks: Sequence["Block"], *, differences: bool = True, intervals: bool = True, marks: bool = True
) -> tuple[str, ...]:
    """What a caption in a paper says of a table with these rows and metrics: score, difference, marks, protocol.

    `differences`: it has them, with `intervals` or without; `marks`: bold, underlined, † and ‡.
    """
    cells = _cells(blocks)
    if not cells:
        return ()
    records = [record for block in blocks for row in block.rows for record in row.records]
    protocols = {f"{r.protocol.get('name')}, version {r.protocol.get('version')}" for r in records}
    score, *difference = _scores(blocks, intervals)
    signs = [
        *(["bold: best, and not separable from it"] if any(cell.best for cell in cells) else []),
        *(["underlined: second highest mean"] if any(cell.second for cell in cells) else []),
        *(["†: differs from its baseline"] if any(cell.significant for cell in cells) else []),
    ]
    tests = f" (paired t-tests, Holm within each column, {ALPHA})."
    return (
        score,
        *(difference if differences else ()),
        *([f"{'; '.join(signs).capitalize()}{tests}"] if marks and signs else []),
        *(_marks(blocks) if marks and not signs else _below(blocks) if marks else ()),
        *(["With a citation: as published, under other protocols."] if any(b.published for b in blocks) else []),
        f"Protocol {' and '.join(sorted(protocols))}; {TRACE} names the records behind every number.",
    )


def _cells(blocks: Sequence["Block"]) -> list["Cell"]:
    """The cells that are printed."""
    return [row.cells[m] for block in blocks for row in block.rows for m in block.shown if m in row.cells]


def _marks(blocks: Sequence["Block"], styled: bool = True) -> Iterator[str]:
    """What bold, underlined, † and ‡ mean, each where it stands somewhere; why not, where none stands anywhere."""
    cells = _cells(blocks)
    tested = any(cell.adjusted_p is not None for cell in cells)
    if styled and any(cell.best for cell in cells):
        yield (
            "Bold: the highest mean of a column and every row not separable from it (paired t-tests of that row, "
            f"which was chosen from the same data, against each other trained row, Holm, {ALPHA})."
        )
    if styled and any(cell.second for cell in cells):
        yield "Underlined: the second highest mean; equal means are marked alike."
    how = f"(paired t-tests of every variant of a column, Holm, {ALPHA}); nothing is corrected across columns."
    if any(cell.significant for cell in cells):
        yield f"†: differs from its baseline {how}"
    elif tested:
        yield f"No variant differs from its baseline {how}"
    yield from _below(blocks)
    why = sorted({column.unmarked for block in blocks for column in map(block.column, block.shown)} - {""})
    if why and not tested and not any(cell.best for cell in cells):
        yield f"No row is marked as best and no difference as significant: {'; '.join(why)}."


def _below(blocks: Sequence["Block"]) -> Iterator[str]:
    """What ‡ means, where it stands somewhere."""
    if any(row.arm in block.below for block in blocks for row in block.rows):
        yield "‡: below its own starting point (FAIR-26)."


def _protocols(records: Sequence[Record]) -> Iterator[str]:
    """Each protocol with its version and, where this version is the one known here, what it fixes."""
    for name, version in sorted(
        {(str(r.protocol.get("name", r.trial.protocol)), r.protocol.get("version", 0)) for r in records}
    ):
        known = PROTOCOLS.get(name)
        rule = f": {known.sentence}" if known and known.version == version else ""
        yield f"{name}, version {version}{rule}"


def _scores(blocks: Sequence["Block"], intervals: bool = True) -> Iterator[str]:
    """What stands before and after ±, by the methods that were really used (FAIR-13); the difference's if printed."""
    shown = _cells(blocks)
    how = _plus_minus([cell.interval for cell in shown], "training seeds")
    how = how or " over n training seeds (too few for an interval)"
    yield f"Test scores in percent: mean{how}{_folds(blocks)}."
    pairs = [cell.paired for cell in shown if cell.paired]
    if pairs:
        how = _plus_minus(pairs, "pairs; it takes the differences as normal") or " (too few for an interval)"
        yield (
            "Δ: mean difference to the same loss without Metrix, in points, paired by seed"
            f"{how if intervals else ''}."
        )


def _folds(blocks: Sequence["Block"]) -> str:
    """`, each the mean over 4 class-disjoint folds`, where that is what the score of a seed is."""
    counts = {record.trial.folds for block in blocks for row in block.rows for record in row.records}
    if not any(counts):
        return ""
    said = " or ".join(map(str, sorted(counts - {None})))
    return f", each the mean over {said} class-disjoint folds" + (" where a table says so" if None in counts else "")


def _plus_minus(intervals: Sequence["Interval | PairedDifference"], over: str) -> str:
    """` ± half width of the 95 % t-interval over n = 3 training seeds`; nothing where no interval exists."""
    real = [interval for interval in intervals if math.isfinite(interval.half)]
    if not real:
        return ""
    methods = sorted({interval.method.partition(" over ")[0] for interval in real})
    least, most = min(interval.n for interval in real), max(interval.n for interval in real)
    n = f"{least}" if least == most else f"{least} to {most}"
    return f" ± half width of the {' or '.join(methods)} over n = {n} {over}"


def of_block(
    rows: Sequence["Row"],
    records: Sequence[Record],
    trials: Sequence[Trial],
    columns: Sequence[Column] = (),
    shown: Sequence[str] = (),
) -> tuple[str, ...]:
    """The data, the network and the training that the rows of a block share, and what its seeds can show.

    `trials` are all of the block's; the first trained one speaks for the settings that they share.
    """
    trial = next((t for t in trials if t.arm.at != "floor"), trials[0] if trials else None)
    said = [_data(records[0])] if records else []
    if trial is not None:
        said.append(_network(trial, records))
        if any(not row.floor for row in rows):
            said.append(_training(rows, trial))
    printed = [column for metric in shown for column in columns if column.metric == metric]
    return (*said, *power(printed), *_queries(printed))


def power(columns: Sequence[Column]) -> Iterator[str]:
    """The least difference that these seeds show, of every printed metric whose differences have a spread."""
    able = [column for column in columns if column.least]
    if able:
        seeds, family = min(c.seeds for c in able), max(c.comparisons for c in able)
        least = " and ".join(f"{100 * c.least:.1f} of {c.metric}" for c in able)
        spread = " and ".join(f"{100 * c.spread:.2f}" for c in able)
        yield (
            f"Power: {seeds} paired seeds show a true difference with a chance of 80 % after Holm for {family} "
            f"comparison{'s' * (family > 1)} from {least} points up (the differences spread by std {spread})."
        )


def _queries(columns: Sequence[Column]) -> Iterator[str]:
    """What another test set would change, where outcomes of single queries were kept."""
    alone, both = [c for c in columns if c.classes], [c for c in columns if c.both]
    if alone:
        said = " and ".join(f"± {100 * c.classes:.1f} of {c.metric}" for c in alone)
        also = " and ".join(f"± {100 * c.both:.1f} of {c.metric}" for c in both)
        yield (
            f"Beyond training seeds: other test classes would move a score by {said}"
            + (f", other seeds and test classes together by {also}" if also else "")
            + " (medians over rows of 95 % bootstrap intervals, whole classes drawn)."
        )


def _data(record: Record) -> str:
    data = record.data
    parts = [
        f"{name} {data.images[name]:,} images of {data.classes.get(name, 0):,} classes"
        for name in sorted(data.images, key=lambda name: (*PARTS, name).index(name))
    ]
    queries = f"{data.test_queries:,} test queries"
    if data.test_excluded:
        queries += f" ({data.test_excluded:,} more excluded, having no other image of their class)"
    prints = f"index {data.index_fingerprint[:12]}"
    if data.pixel_fingerprint:
        prints += f", pixels {data.pixel_fingerprint[:12]}"
    return f"Data: {'; '.join(parts)}; {queries}; fingerprint {prints}."


def _network(trial: Trial, records: Sequence[Record]) -> str:
    chosen = trial.backbone.pretrained
    name = (
        trial.backbone.name if chosen is True else trial.backbone.name.partition(".")[0]
    )  # no tag that is not loaded
    start = "random initial weights"
    if chosen:
        loaded = sorted({r.weights for r in records if r.weights})
        start = " ".join(["pretrained weights" if chosen is True else "weights of the file", *loaded])
    return (
        f"Network: {name}, {start}{_normalised(trial, records)}, {trial.model.pooling} pooling to "
        f"{trial.model.dim} dimensions, BatchNorm {trial.model.norm}, images of {trial.images.side_px} px."
    )


def _normalised(trial: Trial, records: Sequence[Record]) -> str:
    """How images are prepared for weights that are not timm's own, or where the grid says it."""
    used = next((r.provenance["normalisation"] for r in records if r.provenance.get("normalisation")), None)
    own = trial.backbone.mean or trial.backbone.std or trial.backbone.interpolation
    if used is None or not (own or isinstance(trial.backbone.pretrained, str)):
        return ""
    mean, std = (" ".join(f"{value:g}" for value in used[name]) for name in ("mean", "std"))
    rest = f" (what the grid leaves open as timm has it for {used['config']})" if used["config"] else ""
    return f", images normalised by mean {mean} and std {std}, {used['interpolation']}{rest}"


def _training(rows: Sequence["Row"], trial: Trial) -> str:
    """Shared settings of training; step sizes once, or for each loss where losses differ (FAIR-08)."""
    training = trial.training
    drawn = f"{training.examples_per_class} per class" if training.sampler == "balanced" else "shuffled"
    sizes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.level == "baseline" and row.steps:
            sizes[step_sizes(row.steps)].append(row.loss)
    steps = "; ".join(how if len(sizes) == 1 else f"{how} ({listed(who)})" for how, who in sorted(sizes.items()))
    if trial.arm.tuned:
        steps = "step sizes and constants as a search chose them for each arm (search/study.json)"
    epochs = f"{training.epochs} epoch{'s' * (training.epochs != 1)}"
    return f"Training: {epochs}, batches of {training.batch_size} ({drawn}), {training.optimizer}; {steps}."


def step_sizes(steps: dict[str, Any]) -> str:
    """`lr 0.001, cosine` or `lr 0.001, × 0.1 every 10 epochs`."""
    step = f"× {steps['gamma']:g} every {steps['step_epochs']} epoch{'s' * (steps['step_epochs'] != 1)}"
    return f"lr {steps['lr']:g}, {step if steps['schedule'] == 'step' else steps['schedule']}"


def notes(
    place: tuple[str, str],
    rows: Sequence["Row"],
    records: Sequence[Record],
    columns: Sequence[Column] = (),
    shown: Sequence[str] = (),
    findings: Sequence[Any] = (),
) -> tuple[Note, ...]:
    """What to know before believing a block. `findings` of the fairness rules add what is not said here."""
    own = (
        *_few_seeds(rows),
        *_unlike_baseline(rows),
        *(_best(place[0], rows, c) for metric in shown for c in columns if c.metric == metric and _decided(c)),
        *_incomplete(place, rows),
        *_left_out(rows, records),
        *_origins([part for record in records if record.level != "floor" for part in record.parts]),
        *_own_words(rows),
    )
    said = {note.rule for note in own}
    ids = {record.id: row.arm for row in rows for record in row.parts}
    everywhere = set(ids.values())
    further = []
    for finding in findings:
        arms = tuple(dict.fromkeys(ids[id] for id in finding.records if id in ids))
        if arms:
            whole = set(arms) == everywhere and len(everywhere) > 1
            note = Note(finding.sentence, () if whole else arms, finding.severity)
            further.append(replace(note, common=note.rule != BELOW))
    return (*own, *(note for note in dict.fromkeys(further) if note.rule not in said))


def condensed(found: Sequence[Note]) -> tuple[str, ...]:
    """The sentences for print: of those in which a rule says of row after row the same in other words, the first."""
    by_rule: dict[str, list[Note]] = defaultdict(list)
    for note in found:
        by_rule[note.rule if note.common else note.sentence].append(note)
    return tuple(
        notes[0].sentence + (f" (and {len(notes) - 1} more of {rule})" if len(notes) > 1 else "")
        for rule, notes in by_rule.items()
    )


def _few_seeds(rows: Sequence["Row"]) -> Iterator[Note]:
    few: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if 0 < row.n < LEAST_SEEDS and not row.floor:
            few[row.n].append(row.arm)
    trained = sum(row.n > 0 for row in rows if not row.floor)
    for n, arms in sorted(few.items()):
        whom = "" if len(arms) == trained else f" ({listed(arms)})"
        yield Note(f"FAIR-11 n={n}: printed without an interval{whom}.", tuple(arms))


def _decided(column: Column) -> bool:
    """Whether there is something to say of who is best beyond what the caption says of all columns."""
    return bool(column.best) or "higher" in column.unmarked


def _best(dataset: str, rows: Sequence["Row"], column: Column) -> Note:
    if not column.best:
        return Note(f"FAIR-14 {dataset} {column.metric}: no row is marked as best: {column.unmarked}.")
    score = next(row for row in rows if row.arm == column.best).cells[column.metric].mean
    tied = f"{column.tied or 'no'} row{'s' * (column.tied != 1)} not separable (Holm, {ALPHA})"
    return Note(f"FAIR-14 {dataset} {column.metric}: best {100 * score:.1f}; {tied}.")


def _incomplete(place: tuple[str, str], rows: Sequence["Row"]) -> Iterator[Note]:
    for row in rows:
        if row.state in ("fail", "partial"):
            yield Note(f"FAIR-20 {'/'.join(place)}/{row.arm}: {row.reason}.", (row.arm,))


def _unlike_baseline(rows: Sequence["Row"]) -> Iterator[Note]:
    """Variants whose seeds or steps are not those of their baseline, which stands before them."""
    base = None
    for row in rows:
        if not row.indent:
            base = row
        elif base is not None and row.n and base.n:
            if row.seeds != base.seeds:
                both = set(row.seeds) & set(base.seeds)
                used = f"using {_set(both)}" if both else "no difference"
                said = f"FAIR-12 {row.arm} has seeds {_set(row.seeds)}, its baseline {_set(base.seeds)}: {used}."
                yield Note(said, (row.arm,))
            steps, others = ({record.cost.steps for record in some.records} for some in (row, base))
            if steps != others:
                said = f"FAIR-07 {row.arm} trained {_set(steps)} steps, its baseline {_set(others)}."
                yield Note(said, (row.arm,))


def _left_out(rows: Sequence["Row"], records: Sequence[Record]) -> Iterator[Note]:
    """Scores and records that are in no mean."""
    for row in rows:
        for record in row.records:
            for metric, value in sorted(record.test.items()):
                if not math.isfinite(value):
                    seed = record.trial.seed
                    said = f"FAIR-22 {row.arm} seed {seed}: {metric} is not finite; left out of the mean."
                    yield Note(said, (row.arm,))
    kept = {record.id for row in rows for record in row.records}
    for record in records:
        if record.id not in kept:
            said = f"FAIR-08 {record.id} repeats an arm and seed of this table: left out."
            yield Note(said, (record.arm,))


def _origins(records: Sequence[Record]) -> Iterator[Note]:
    """Trained records that differ in machine, code or initial weights, none of which a table splits by."""
    devices = sorted({str(r.provenance["device"]) for r in records if r.provenance.get("device")})
    if len(devices) > 1:
        yield Note(f"FAIR-07 trained on {listed(devices)}: training times compare devices too.")
    revisions = sorted({_revision(r) for r in records if r.provenance})
    if len(revisions) > 1:
        yield Note(f"FAIR-23 records of {len(revisions)} states of the code: {listed(revisions)}.")
    begun: dict[int, set[str]] = defaultdict(set)
    for record in records:
        if weights := record.provenance.get("initial_weights"):
            begun[record.trial.seed].add(weights)
    if seeds := [seed for seed, weights in sorted(begun.items()) if len(weights) > 1]:
        yield Note(f"FAIR-08 initial weights differ between arms of seed {listed(map(str, seeds))}.")


def _revision(record: Record) -> str:
    origin = record.provenance
    name = str(origin.get("revision") or origin.get("sources") or "unknown")[:10]
    return f"{name} with changes {origin['uncommitted']}" if origin.get("uncommitted") else name


def _own_words(rows: Sequence["Row"]) -> Iterator[Note]:
    """What trials noted themselves, once, with the arms that noted it, and their seeds where not all of them did."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        seeds: dict[str, list[int]] = defaultdict(list)
        for record in row.records:
            for note in record.notes:
                seeds[note.rstrip(".")].append(record.trial.seed)
        for note, some_ in seeds.items():
            which = "" if len(some_) == len(row.records) else f" seed {', '.join(map(str, some_))}"
            said[note][row.arm] = row.arm + which
    for note, who in sorted(said.items()):
        yield Note(f"{note} ({listed(who.values())}).", tuple(who))


def listed(names: Iterable[str]) -> str:
    """The names as a caption has room for them."""
    return some(names, 8)


def _set(values: Iterable[int]) -> str:
    return "{" + ",".join(map(str, sorted(values))) + "}"
