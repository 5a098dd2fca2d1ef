"""Records: the truth about a run. A trial is done when its record exists; tables are built from records alone."""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness.config import Grid, Trial
from harness.data.datasets import PassedOver
from harness.runs import files

SCHEMA = 1
LAST = "MAP@R"  # the score that every evaluation has


def least_recall(scores: Iterable[str]) -> str | None:
    """The name R@K of the least K among the names of scores; None where there is none."""
    return min((name for name in scores if name.startswith("R@")), key=lambda name: int(name[2:]), default=None)


def _file_name(text: str) -> str:
    """An id becomes a file name: one from a file that others wrote must not lead out of its folder."""
    if not text or text.startswith(".") or any(sign in text for sign in "/\\\0"):
        raise ValueError(f"{text!r} is no id: it leads out of the run folder")
    return text


Id = Annotated[str, AfterValidator(_file_name)]


class Stored(BaseModel):
    """A part of a record: read as it was written; keys of a later schema are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Epoch(Stored):
    """One epoch of training: mean loss over its steps, learning rate, validation scores in [0, 1], seconds.

    `spread`: std and effective rank of the validation embeddings (see `evaluation.spread`). Epoch 0 is the network
    before its first step: it has no loss, and is never chosen. Curves of older records begin at epoch 1.
    """

    epoch: int
    loss: float | None
    lr: float
    validation: dict[str, float]
    train_s: float
    validation_s: float
    spread: dict[str, float] = {}


class Cost(Stored):
    """What the trial took, over all attempts.

    `train_s` is the time of training steps, without checkpoints, validation and test. `wall_s` is the time from start
    to record. Of an attempt that was killed it counts the part up to its last checkpoint: what came after left no
    trace. `attempt_s`: what of it the last attempt took. `peak_gb` is that of this process, of rank 0 where several
    share the batch: memory allocated on its GPU, or resident memory on a processor; None where the system does not
    say (see `harness.training.memory`).
    """

    train_s: float = 0.0
    checkpoint_s: float = 0.0
    wall_s: float = 0.0
    attempt_s: float | None = None
    images_per_s: float | None = None
    steps: int = 0
    images_seen: int = 0
    forward_passes_per_step: float = 0.0
    peak_gb: float | None = None
    parameters: int = 0


class Data(Stored):
    """Which data: sizes and fingerprints of what was trained, selected and tested on.

    Of the `test_asked` images that are queries, `test_queries` have a positive and `test_excluded` have none.
    `distinct_classes`: in all splits together. `content_fingerprint` tells the pixels from others under the same
    names, as far as they were read for this trial; `source_stamp` is the dataset's `stamp`. `passed_over`: what lay
    among the images and is no part of the data.
    """

    index_fingerprint: str
    pixel_fingerprint: str | None = None
    content_fingerprint: str | None = None
    source_stamp: str | None = None
    split_fingerprint: str
    images: dict[str, int]
    classes: dict[str, int]
    test_queries: int
    test_excluded: int
    test_asked: int | None = None
    distinct_classes: int | None = None
    passed_over: tuple[PassedOver, ...] = ()


class Record(Stored):
    """A finished trial: its settings, curve, scores of the one test read, costs and provenance.

    `test_checkpoints`: how many checkpoints of this cell and seed had read the test by then, this one included.
    `folds`: of the mean over a seed's folds (see `folds`), which is never stored, the records it is made of.
    """

    schema_version: Literal[1] = SCHEMA
    id: Id
    trial: Trial
    arm: str
    level: str
    baseline: str
    grid: dict[str, Any]
    protocol: dict[str, Any]
    selected_epoch: int | None
    validation: dict[str, float]
    test: dict[str, float]
    best_test_epoch: dict[str, float] | None = None  # protocol paper only; chooses nothing
    test_spread: dict[str, float] = {}
    test_checkpoints: int = 1
    curve: tuple[Epoch, ...] = ()
    cost: Cost
    data: Data
    effective: dict[str, Any] = {}
    analysis: dict[str, Any] = {}
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    finished: str
    folds: tuple["Record", ...] = Field((), exclude=True)

    @property
    def weights(self) -> str | None:
        """What the network began with: timm's tag of published weights, or name and digest of a file of weights.

        None for random initial weights, and where nothing was loaded. Older records name timm's tag whatever was
        loaded; their settings and digest say better.
        """
        chosen, origin = self.trial.backbone.pretrained, self.provenance
        if chosen is True:
            return origin.get("weights")
        digest = origin.get("initial_weights")
        return f"{Path(chosen).name} (sha256 {digest[:12]})" if chosen and digest else None

    @property
    def headline(self) -> tuple[str, float]:
        """The one score that a finished trial is named with: R@K on test of the least K that it scored, or MAP@R.

        Validation MAP@R, under that name, where the test was not read, as in a search.
        """
        if not self.test:
            return f"validation {LAST}", self.validation.get(LAST, math.nan)
        name = least_recall(self.test) or LAST
        return name, self.test.get(name, math.nan)

    @property
    def parts(self) -> tuple["Record", ...]:
        """The records that are files: those of the folds, or this one."""
        return self.folds or (self,)


class Failure(Stored):
    """Why a trial has no record: kind, one sentence, the traceback.

    Kinds: error, refused (its settings or data cannot work, so it is not tried again), diverged, out of memory,
    timeout (it hung), lost (its process died), storage (full or away long).
    """

    id: Id
    trial: Trial
    arm: str
    kind: str
    reason: str
    traceback: str = ""
    attempts: int = 1
    finished: str


class Asked(Stored):
    """What a run folder was asked for: grids, trials that do not stand in a grid (such as compute-matched ones), and
    (dataset, backbone, arm, reason) of combinations that have no Metrix form."""

    grids: tuple[Grid, ...] = ()
    further: tuple[Trial, ...] = ()
    refused: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that should have a record some day; of a tuned grid, those with the settings it chose."""
        without = {row[:3] for row in self.refused}
        trials = {
            t.id: t
            for grid in self.grids
            for t in grid.trials()
            if t.cell not in without and (grid.protocol != "tuned" or t.arm.at == "floor")
        }
        return (*trials.values(), *(t for t in self.further if t.id not in trials))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside, flush to the disk, rename into place: readers see all of it or nothing."""
    text = json.dumps(content, indent=1, allow_nan=False)
    files.put(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
