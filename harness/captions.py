"""The words of a leaderboard: captions that say what its numbers are, notes that say what to doubt.

Every sentence is made from the rows and records it speaks of, so that none can claim what was not computed.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import Trial
from harness.record import Record
from harness.selection import PROTOCOLS

if TYPE_CHECKING:
    from harness.statistics import Interval, PairedDifference
    from harness.tables import Block, Row

INTERVAL_FROM = 3  # seeds below which no interval is printed (FAIR-11)
MARKS_FROM = 5  # seeds below which no row is marked best and no difference significant (FAIR-11)
PARTS = ("train", "validation", "test")


def of_leaderboard(blocks: Sequence["Block"], records: Sequence[Record]) -> tuple[str, ...]:
    """What the numbers of every block are: protocol, score, interval, difference, cost, ties, marks, floors."""
    if not records:
        return ()
    rows = [row for block in blocks for row in block.rows]
    said = [f"Protocol {name}." for name in _protocols(records)]
    said += _scores(rows)
    if any(row.relative_time or row.relative_passes for row in rows):
        said.append("Training time (seconds inside training steps) and forward passes a step: × the own baseline.")
    said.append("Ties count against the model; a query is removed from its own neighbours by its index.")
    if most := max((row.n for row in rows if not row.floor), default=0):
        few = f"n = {most} seed{'s are' if most > 1 else ' is'} fewer than {MARKS_FROM}"
        why = few if most < MARKS_FROM else "no test that allows for the number of comparisons was made"
        said.append(f"No row is marked as best and no difference as significant: {why}.")
    if any(row.arm == "untrained" for row in rows):
        said.append("untrained: the same network with its initial weights.")
    if any(row.arm == "pixels" for row in rows):
        said.append("pixels: cosine of the raw images; nothing in it is random, so n = 1.")
    return tuple(said)


def _protocols(records: Sequence[Record]) -> Iterator[str]:
    """Each protocol with its version and, where this version is the one known here, what it fixes."""
    for name, version in sorted(
        {(str(r.protocol.get("name", r.trial.protocol)), r.protocol.get("version", 0)) for r in records}
    ):
        known = PROTOCOLS.get(name)
        rule = f": {known.sentence}" if known and known.version == version else ""
        yield f"{name}, version {version}{rule}"


def _scores(rows: Sequence["Row"]) -> Iterator[str]:
    """What stands before and after ±, by the methods that were really used (FAIR-13)."""
    shown = [cell for row in rows for cell in row.cells.values()]
    how = _plus_minus([cell.interval for cell in shown], "training seeds")
    yield f"Test scores in percent: mean{how or ' over n training seeds (too few for an interval)'}."
    pairs = [cell.paired for cell in shown if cell.paired]
    if pairs:
        how = _plus_minus(pairs, "pairs; it takes the differences as normal")
        yield (
            "Δ: mean difference to the same loss without Metrix, in points, paired by seed"
            f"{how or ' (too few for an interval)'}."
        )


def _plus_minus(intervals: Sequence["Interval | PairedDifference"], over: str) -> str:
    """` ± half width of the 95 % t-interval over n = 3 training seeds`; nothing where no interval exists."""
    real = [interval for interval in intervals if math.isfinite(interval.half)]
    if not real:
        return ""
    methods = sorted({interval.method.partition(" over ")[0] for interval in real})
    least, most = min(interval.n for interval in real), max(interval.n for interval in real)
    n = f"{least}" if least == most else f"{least} to {most}"
    return f" ± half width of the {' or '.join(methods)} over n = {n} {over}"


def of_block(rows: Sequence["Row"], records: Sequence[Record], trials: Sequence[Trial]) -> tuple[str, ...]:
    """The data, the network and the training that the rows of a block share.

    `trials` are all of the block's; the first trained one speaks for the settings that they share.
    """
    trial = next((t for t in trials if t.arm.at != "floor"), trials[0] if trials else None)
    said = [_data(records[0])] if records else []
    if trial is not None:
        said.append(_network(trial, records))
        if any(not row.floor for row in rows):
            said.append(_training(rows, trial))
    return tuple(said)


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
    start = "random initial weights"
    if trial.backbone.pretrained:
        tags = {str(r.provenance["weights"]) for r in records if r.provenance.get("weights")}
        start = " ".join(["pretrained weights", *sorted(tags)])
    return (
        f"Network: {trial.backbone.name}, {start}, {trial.model.pooling} pooling to {trial.model.dim} dimensions, "
        f"BatchNorm {trial.model.norm}, images of {trial.images.side_px} px."
    )


def _training(rows: Sequence["Row"], trial: Trial) -> str:
    """Shared settings of training; step sizes once, or for each loss where losses differ (FAIR-08)."""
    training = trial.training
    drawn = f"{training.examples_per_class} per class" if training.sampler == "balanced" else "shuffled"
    sizes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.level == "baseline" and row.steps:
            sizes[step_sizes(row.steps)].append(row.loss)
    steps = "; ".join(how if len(sizes) == 1 else f"{how} ({listed(who)})" for how, who in sorted(sizes.items()))
    epochs = f"{training.epochs} epoch{'s' * (training.epochs != 1)}"
    return f"Training: {epochs}, batches of {training.batch_size} ({drawn}), {training.optimizer}; {steps}."


def step_sizes(steps: dict[str, Any]) -> str:
    """`lr 0.001, cosine` or `lr 0.001, × 0.1 every 10 epochs`."""
    step = f"× {steps['gamma']:g} every {steps['step_epochs']} epoch{'s' * (steps['step_epochs'] != 1)}"
    return f"lr {steps['lr']:g}, {step if steps['schedule'] == 'step' else steps['schedule']}"


def notes(place: tuple[str, str], rows: Sequence["Row"], records: Sequence[Record]) -> tuple[str, ...]:
    """What a reader must know before believing a block, one sentence each, led by its rule where it has one."""
    return (
        *_few_seeds(rows),
        *_unlike_baseline(rows),
        *(f"FAIR-20 {'/'.join(place)}/{row.arm}: {row.reason}." for row in rows if row.state in ("fail", "partial")),
        *_left_out(rows, records),
        *_origins([record for record in records if record.level != "floor"]),
        *_own_words(rows),
    )


def _few_seeds(rows: Sequence["Row"]) -> Iterator[str]:
    few: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if 0 < row.n < INTERVAL_FROM and not row.floor:
            few[row.n].append(row.arm)
    trained = sum(row.n > 0 for row in rows if not row.floor)
    for n, arms in sorted(few.items()):
        yield f"FAIR-11 n={n}: printed without an interval{'' if len(arms) == trained else f' ({listed(arms)})'}."


def _unlike_baseline(rows: Sequence["Row"]) -> Iterator[str]:
    """Variants whose seeds or steps are not those of their baseline, which stands before them."""
    base = None
    for row in rows:
        if not row.indent:
            base = row
        elif base is not None and row.n and base.n:
            if row.seeds != base.seeds:
                both = set(row.seeds) & set(base.seeds)
                used = f"using {_set(both)}" if both else "no difference"
                yield f"FAIR-12 {row.arm} has seeds {_set(row.seeds)}, its baseline {_set(base.seeds)}: {used}."
            steps, others = ({record.cost.steps for record in some.records} for some in (row, base))
            if steps != others:
                yield f"FAIR-07 {row.arm} trained {_set(steps)} steps, its baseline {_set(others)}."


def _left_out(rows: Sequence["Row"], records: Sequence[Record]) -> Iterator[str]:
    """Scores and records that are in no mean."""
    for row in rows:
        for record in row.records:
            for metric, value in sorted(record.test.items()):
                if not math.isfinite(value):
                    yield (
                        f"FAIR-22 {row.arm} seed {record.trial.seed}: {metric} is not finite; left out of the mean."
                    )
    kept = {record.id for row in rows for record in row.records}
    for record in records:
        if record.id not in kept:
            yield f"FAIR-08 {record.id} repeats an arm and seed of this table: left out."


def _origins(records: Sequence[Record]) -> Iterator[str]:
    """Trained records that differ in machine, code or initial weights, none of which a table splits by."""
    devices = sorted({str(r.provenance["device"]) for r in records if r.provenance.get("device")})
    if len(devices) > 1:
        yield f"FAIR-07 trained on {listed(devices)}: training times compare devices too."
    revisions = sorted({_revision(r) for r in records if r.provenance})
    if len(revisions) > 1:
        yield f"FAIR-23 records of {len(revisions)} states of the code: {listed(revisions)}."
    begun: dict[int, set[str]] = defaultdict(set)
    for record in records:
        if weights := record.provenance.get("initial_weights"):
            begun[record.trial.seed].add(weights)
    if seeds := [seed for seed, weights in sorted(begun.items()) if len(weights) > 1]:
        yield f"FAIR-08 initial weights differ between arms of seed {listed(map(str, seeds))}."


def _revision(record: Record) -> str:
    origin = record.provenance
    name = str(origin.get("revision") or origin.get("sources") or "unknown")[:10]
    return f"{name} with changes {origin['uncommitted']}" if origin.get("uncommitted") else name


def _own_words(rows: Sequence["Row"]) -> Iterator[str]:
    """What trials noted themselves, once, with all that noted it."""
    said: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for record in row.records:
            for note in record.notes:
                said[note.rstrip(".")].append(f"{row.arm} seed {record.trial.seed}")
    for note, who in sorted(said.items()):
        yield f"{note} ({listed(who)})."


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names with commas, the first few of many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _set(values: Iterable[int]) -> str:
    return "{" + ",".join(map(str, sorted(values))) + "}"
