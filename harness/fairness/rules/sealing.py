"""Rules about the test split: it is read once, after everything was chosen without it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import first_few
from harness.fairness.protocols import PROTOCOLS
from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import cell_of, counted, ids

if TYPE_CHECKING:
    from harness.fairness.protocols import Protocol
    from harness.runs.record import Record

TEST_METRIC = re.compile(
    r"test[/_.:\s]+(r@\d+|p@\d+|map(@r)?|r-?precision|recall\S*|precision\S*|nmi|loss|accuracy|score)", re.IGNORECASE
)
AT = re.compile(r"R@(\d+)")
ROUNDING = 1e-6  # per-query scores are kept as float32


@rule("FAIR-03", "W", over="records")
def read_once(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The test split is read after selection, and for one checkpoint of a cell.

    A read for a second checkpoint makes it possible to compare two test scores, whichever is reported. Reading it
    again for the same checkpoint (after a crash, or to verify) reveals nothing new. The ledger covers its own run
    folder only.
    """
    again = results.ledger.read_again() if results.ledger else {}
    for record in results.tested:
        protocol = _protocol(record)
        read = len(again.get(_ledger_cell(record), ())) or record.test_checkpoints
        if read > 1 and not (protocol and protocol.watches_test):
            times = "twice" if read == 2 else f"for {read} checkpoints"
            yield f"test read {times} for {cell_of(record)} {record.trial.seed_and_fold}.", (record.id,)


@rule("FAIR-03", "E", over="records")
def every_read_is_in_the_ledger(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A record's scores come from a read that is in the ledger."""
    if results.ledger is None:
        return
    known = {entry.key for entry in results.ledger.entries()}
    unknown = [record for record in results.tested if _key(record) not in known]
    if unknown:
        yield f"the ledger has no test read for {counted(unknown)}: {first_few(ids(unknown))}.", ids(unknown)


@rule("FAIR-03", "W", over="records")
def ledger_is_intact(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every line of the ledger can be read."""
    if results.ledger is not None and (lines := results.ledger.damaged()):
        yield f"{results.ledger.path.name}: line {first_few(list(map(str, lines)))} cannot be read.", ()


def _ledger_cell(record: Record) -> str:
    """Return cell, seed and fold as the ledger has them."""
    return f"{cell_of(record)}/{record.trial.repetition}"


def _key(record: Record) -> tuple[str, ...]:
    origin = record.provenance
    weights, evaluator = str(origin.get("tested_weights")), str(origin.get("evaluator"))
    return _ledger_cell(record), weights, record.data.split_fingerprint, evaluator


@rule("FAIR-04", "E", over="grid")
def no_setting_names_the_test(settings: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """No test metric controls a scheduler, early stopping, checkpoint selection or search.

    The best of many test scores is biased upwards, and more so the more scores there are.
    """
    for key, value in _leaves(settings):
        if isinstance(value, str) and TEST_METRIC.fullmatch(value.strip()):
            yield f"{key} = {value}. Use val/R@1 or val/MAP@R.", ()


@rule("FAIR-04", "E", over="records")
def the_choice_follows_validation(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The reported epoch is the one that the protocol chooses from the validation curve."""
    for record in results.records:
        protocol = _protocol(record)
        if protocol is None or not record.curve:
            continue
        if any(TEST_METRIC.match(name) for epoch in record.curve for name in epoch.validation):
            yield f"{record.id}: its validation curve contains test scores.", (record.id,)
            continue
        if protocol.rule != "last epoch" and any(protocol.metric not in epoch.validation for epoch in record.curve):
            yield f"{record.id}: its curve lacks validation {protocol.metric}, which chooses the epoch.", (record.id,)
            continue
        chosen = protocol.choose(record.curve)
        if record.selected_epoch != chosen:
            rule = "the last epoch" if protocol.rule == "last epoch" else f"validation {protocol.metric}"
            yield f"{record.id}: epoch {record.selected_epoch} is reported, {rule} chooses {chosen}.", (record.id,)
        if record.test and not protocol.reads_test:
            yield f"{record.id}: a trial of a search has test scores.", (record.id,)


def _protocol(record: Record) -> Protocol | None:
    """Return the protocol of a record, if it has the version that is defined here; else None."""
    known = PROTOCOLS.get(str(record.protocol.get("name")))
    return known if known and known.version == record.protocol.get("version") else None


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (dotted key, value) of nested settings."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _leaves(value, prefix)
    else:
        yield prefix, settings


@rule("FAIR-05", "E", over="records")
def one_checkpoint(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All metrics of a row come from one checkpoint, the selected one.

    A row that takes each metric from its own best epoch describes a model that does not exist.
    """
    for record in results.records:
        tested, selected = record.provenance.get("tested_epoch"), record.selected_epoch
        if record.test and selected is not None and tested is not None and tested != selected:
            yield f"{record.id}: the test was read at epoch {tested}, epoch {selected} was chosen.", (record.id,)
        by_epoch = {epoch.epoch: epoch.validation for epoch in record.curve}
        for name, value in record.validation.items():
            if selected is not None and by_epoch.get(selected, {}).get(name) != value:
                where = next(
                    (f"epoch {e}" for e, scores in by_epoch.items() if scores.get(name) == value), "no epoch"
                )
                yield f"{record.id}: validation {name} is from {where}, epoch {selected} was chosen.", (record.id,)
        for split, scores in (("test", record.test), ("validation", record.validation)):
            for low, high in _misordered(scores):
                pair = f"{split} {low} = {scores[low]:.4f} is above {high} = {scores[high]:.4f}"
                yield f"{record.id}: {pair}, which no single checkpoint can score.", (record.id,)


def _misordered(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield metrics (a, b) with a > b although a ≤ b in any ranking: R@K grows with K, MAP@R ≤ R-Precision."""
    recalls = sorted((name for name in scores if AT.fullmatch(name)), key=lambda name: int(name[2:]))
    pairs = [*itertools.pairwise(recalls), ("MAP@R", "R-Precision")]
    for low, high in pairs:
        if low in scores and high in scores and scores[low] > scores[high] + ROUNDING:
            yield low, high
