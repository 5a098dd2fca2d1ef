"""Verify records: recompute their scores from what the test read left on disk.

Three things are compared with a record, if they were kept:

    outcomes     the stored outcome of every query: their mean is the recorded score, to the last bit
    embeddings   the stored embeddings, scored again
    weights      the stored weights: their digest is the recorded one, and embedding the test images with them gives
                 the recorded scores. The ledger records it: the same weights again are no second read, and weights of
                 another digest never see the test

Embeddings are stored as float16, which rounds each value by up to half a step of its eleven significant bits. That
changes the outcome of a few queries whose best right and wrong neighbours are equally near. How many depends on the
embedding: if all vectors lie close together, rounding changes their differences a lot. So the tolerance is measured:
the stored values are moved once more, at random by up to half a step. The recomputed outcomes may differ from the
stored ones by twice the mean change per query that this causes, plus three queries.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from harness.evaluation.retrieval import Evaluation
from harness.runs.outcomes import UNREADABLE
from harness.runs.record import Record
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training.bench import Bench
from harness.training.devices import device_name
from harness.training.origin import load_best
from harness.training.pictures import Sources
from harness.training.scoring import read_test, score_test
from harness.training.trial import REFUSED

MARGIN = 2.0  # two roundings of the same size differ in how many queries they change
SPARE = 3  # queries that may change where rounding again changed none
OTHER_DEVICE = 8  # steps of float16: GPUs multiply in ten bits (TF32), layer after layer
CHECKS = ("outcomes", "embeddings", "weights")


@dataclass
class Verdict:
    """The verdict on one record: a sentence for each passed check, each difference and each missing file."""

    id: str
    matches: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def state(self) -> Literal["matches", "differs", "missing"]:
        """`matches` if every possible check was made and passed."""
        return "differs" if self.differs else "missing" if self.missing else "matches"

    def __str__(self) -> str:
        return "; ".join(self.differs + self.missing or self.matches)


def verify(
    run: Run, only: str = "", data: Path | None = None, cache: Path | None = None, device: str | None = None
) -> Iterator[Verdict]:
    """Yield a verdict on every record of a run folder that has test scores and `only` in its id.

    `data`, `cache` and `device` are those of a run; `data` is needed only where weights were kept.
    """
    sources = Sources(run.address, data, cache, device)
    for record in run.records():
        if only in record.id and record.test:
            yield verify_record(run, record, sources)


def verify_record(run: Run, record: Record, sources: Sources) -> Verdict:
    """Compare one record with its stored outcomes, embeddings and weights."""
    verdict = Verdict(record.id)
    if record.trial.id != record.id:
        verdict.differs.append(f"its settings belong to {record.trial.id}")
    if record.trial.keep == "none":
        verdict.missing.append("nothing was kept (keep: none)")
        return verdict
    kept = _stored(run.per_query(record.id), verdict)
    if kept:
        _compare_outcomes(record, kept, verdict)
        _compare_embeddings(record, kept, verdict)
    if record.trial.keep == "weights" and record.level != "floor":
        _compare_weights(run, record, kept, sources, verdict)
    return verdict


def _stored(path: Path, verdict: Verdict) -> dict[str, np.ndarray]:
    """Return the stored arrays of the test read; if there are none, {} and a sentence in the verdict."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)
    except FileNotFoundError:
        verdict.missing.append(f"{path} is missing")
    except UNREADABLE as error:
        verdict.differs.append(f"{path} cannot be read: {error}")
    return {}


def _compare_outcomes(record: Record, kept: Mapping[str, np.ndarray], verdict: Verdict) -> None:
    """Compare the mean of the stored outcomes with the recorded score: they come from the same numbers."""
    wrong = []
    for name, recorded in record.test.items():
        outcomes = kept.get(f"query {name}", np.empty(0))
        mean = float(outcomes.mean(dtype=np.float64)) if len(outcomes) else None
        if mean != recorded:
            wrong.append(f"{name} is recorded as {recorded}, but its outcomes average to {mean}")
        elif len(outcomes) != record.data.test_queries:
            wrong.append(f"{name} has {len(outcomes)} outcomes for {record.data.test_queries} queries")
    verdict.differs += wrong
    if not wrong:
        verdict.matches.append("outcomes: exact")


def _compare_embeddings(record: Record, kept: Mapping[str, np.ndarray], verdict: Verdict) -> None:
    """Score the stored embeddings again."""
    try:
        stored = kept["embeddings"]
        again, moved = (_scored(record, kept, values) for values in (stored, _moved(stored)))
    except (KeyError, ValueError) as error:
        verdict.differs.append(f"the stored embeddings cannot be scored: {error}")
        return
    _compare(record, kept, again, moved, "embeddings", verdict)


def _compare_weights(
    run: Run, record: Record, kept: Mapping[str, np.ndarray], sources: Sources, verdict: Verdict
) -> None:
    """Embed the test images with the stored weights, if they are the recorded ones, and score them."""
    run.pull_checkpoints(record.trial)
    folder = run.checkpoints(record.trial)
    path = folder / "best.safetensors"
    if record.selected_epoch is None or not path.exists():
        verdict.missing.append(f"{path} is missing")
        return
    try:
        sections, _ = checkpoint.load(path)
        digest, recorded = checkpoint.state_digest(sections["model"]), record.provenance.get("tested_weights")
        if digest != recorded:
            verdict.differs.append(f"{path} contains weights {digest[:12]}, but {str(recorded)[:12]} were tested")
            return
        bench = Bench.of(record.trial, sources)
        load_best(bench.model, folder, record.selected_epoch)
    except REFUSED as error:
        verdict.missing.append(f"the weights have the recorded digest, but were not run: {error}")
        return
    except checkpoint.CheckpointError as error:
        verdict.differs.append(str(error))
        return
    known = (record.data.index_fingerprint, record.data.content_fingerprint or bench.images.fingerprint)
    if (bench.dataset.index_fingerprint, bench.images.fingerprint) != known:
        verdict.missing.append(
            "the weights have the recorded digest, but were not run: the data differ from those of the record"
        )
        return
    test = read_test(bench, run)
    if test.values == record.test:
        verdict.matches.append("weights: exact")
        return
    here = device_name(bench.device) == record.provenance.get("device")
    arrays = {"ids": test.ids, "labels": test.labels, **({} if test.roles is None else {"roles": test.roles})}
    moved = _scored(record, arrays, _moved(test.embeddings.cpu().numpy(), 1 if here else OTHER_DEVICE))
    _compare(record, kept, test.result, moved, "weights", verdict)


def _scored(record: Record, kept: Mapping[str, np.ndarray], embeddings: np.ndarray) -> Evaluation:
    ks = [int(name[2:]) for name in record.test if name.startswith("R@")]
    return score_test(embeddings, kept["labels"], kept["ids"], kept.get("roles"), ks)


def _moved(embeddings: np.ndarray, steps: float = 1) -> np.ndarray:
    """Return the embeddings, each value moved at random by up to half a step of float16 (times `steps`)."""
    step = np.spacing(np.abs(embeddings).astype(np.float16)).astype(np.float32)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, embeddings.shape).astype(np.float32)
    return embeddings.astype(np.float32) + steps * step * noise


def _compare(
    record: Record, kept: Mapping[str, np.ndarray], again: Evaluation, moved: Evaluation, what: str, verdict: Verdict
) -> None:
    """Compare recomputed outcomes with the stored ones, or else the score, within what rounding explains."""
    wrong, changed = [], 0.0
    for name, recorded in record.test.items():
        mine, other = (np.asarray(result.per_query[name], float) for result in (again, moved))
        stored = np.asarray(kept.get(f"query {name}", mine - mine.mean() + recorded), float)
        if len(stored) != len(mine):
            wrong.append(f"{what} give {len(mine)} outcomes of {name}, but {len(stored)} are stored")
            continue
        change, allowed = np.abs(mine - stored).mean(), MARGIN * np.abs(other - mine).mean() + SPARE / len(mine)
        changed = max(changed, change)
        if change > allowed:
            score = f"{name} = {again.values[name]:.4f} from the {what}, recorded {recorded:.4f}"
            wrong.append(f"{score}: {100 * change:.2g} % of it changed, rounding explains {100 * allowed:.2g} %")
    verdict.differs += wrong
    if not wrong:
        verdict.matches.append(f"{what}: within rounding ({100 * changed:.2g} % of outcomes changed)")
