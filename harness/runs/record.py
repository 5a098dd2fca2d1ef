"""What a record contains. A trial is done when its record exists, and tables are built from records alone."""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness.config import Arm, Trial
from harness.data.datasets import PassedOver
from harness.grid import Grid
from harness.runs import files

SCHEMA = 1
ALWAYS = "MAP@R"  # the score that every evaluation has


def least_recall(scores: Iterable[str]) -> str | None:
    """Return the name R@K with the smallest K among the names of scores; None if there is none."""
    return min((name for name in scores if name.startswith("R@")), key=lambda name: int(name[2:]), default=None)


def _file_name(text: str) -> str:
    """Return an id that can be a file name. Raises ValueError for one that leads out of its folder."""
    if not text or text.startswith(".") or any(sign in text for sign in "/\\\0"):
        raise ValueError(f"{text!r} is not an id: it leads out of the run folder")
    return text


Id = Annotated[str, AfterValidator(_file_name)]


class Stored(BaseModel):
    """A part of a stored file. Keys of a later schema are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Epoch(Stored):
    """One epoch of training: mean loss over its steps, learning rate, validation scores in [0, 1], seconds.

    `spread`: standard deviation and effective rank of the validation embeddings (see `evaluation.spread`). Epoch 0 is
    the network before its first step: it has no loss and is never chosen. Curves of older records begin at epoch 1.
    """

    epoch: int
    loss: float | None
    lr: float
    validation: dict[str, float]
    train_s: float
    validation_s: float
    spread: dict[str, float] = {}


class Cost(Stored):
    """What the trial cost, over all attempts.

    train_s    seconds of training steps, without checkpoints, validation and test
    wall_s     seconds from start to record; of a killed attempt, those up to its last checkpoint
    attempt_s  the part of wall_s that the last attempt took
    peak_gb    memory allocated on the GPU, or resident memory on a processor, of this process (of rank 0 if several
               share the batch); None if the system does not report it (see `harness.training.memory`)
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
    """Sizes and fingerprints of the data for training, selection and test.

    test_asked           images that are queries: `test_queries` have a positive, `test_excluded` have none
    distinct_classes     in all splits together
    content_fingerprint  of the pixels, as far as they were read for this trial: distinguishes equal file names
    source_stamp         the dataset's `stamp`
    passed_over          files among the images that are no part of the data
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

    `test_checkpoints`: how many checkpoints of this cell and seed had read the test by then, including this one.
    `counted`: what its level and loss counted, such as virtual examples: means over the training steps of the tested
    weights.
    `folds`: the records of a seed's folds, if this is their mean (see `harness.runs.folds`), which is never stored.
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
    counted: dict[str, float] = {}
    analysis: dict[str, Any] = {}
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    finished: str
    folds: tuple["Record", ...] = Field(default=(), exclude=True)

    @property
    def weights(self) -> str | None:
        """The initial weights: timm's tag of published ones, or name and digest of a file; None for random ones.

        Older records have timm's tag whatever was loaded, so their settings and digest are used.
        """
        chosen, origin = self.trial.backbone.pretrained, self.provenance
        if chosen is True:
            return origin.get("weights")
        digest = origin.get("initial_weights")
        return f"{Path(chosen).name} (sha256 {digest[:12]})" if chosen and digest else None

    @property
    def headline(self) -> tuple[str, float]:
        """The score that represents a finished trial, with its name: R@K on test with the smallest K, or MAP@R.

        Validation MAP@R if the test was not read, as in a search.
        """
        if not self.test:
            return f"validation {ALWAYS}", self.validation.get(ALWAYS, math.nan)
        name = least_recall(self.test) or ALWAYS
        return name, self.test.get(name, math.nan)

    @property
    def parts(self) -> tuple["Record", ...]:
        """The records that are stored: those of the folds, or this one."""
        return self.folds or (self,)


class Failure(Stored):
    """Why a trial has no record: kind, reason in one sentence, traceback.

    Kinds: error, refused (its settings or data cannot work, so it is not retried), diverged, out of memory, timeout
    (it hung), lost (its process died), storage (full or unavailable for too long).
    """

    id: Id
    trial: Trial
    arm: str
    kind: str
    reason: str
    traceback: str = ""
    attempts: int = 1
    finished: str


class Requested(Stored):
    """The trials planned in a folder.

    further  trials that no grid lists, such as compute-matched ones
    refused  (dataset, backbone, arm, reason) of losses with a level that has no form for them
    """

    grids: tuple[Grid, ...] = ()
    further: tuple[Trial, ...] = ()
    refused: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that should get a record; of a tuned grid, those with the chosen settings."""
        without = {row[:3] for row in self.refused}
        trials = {
            t.id: t
            for grid in self.grids
            for t in grid.trials()
            if t.cell not in without and (grid.protocol != "tuned" or t.arm.at == "floor")
        }
        return (*trials.values(), *(t for t in self.further if t.id not in trials))

    @property
    def without_form(self) -> tuple[tuple[Trial, str], ...]:
        """A trial of each refused combination, with the reason.

        If no grid lists its arm, as an older version named it, the settings are those of another trial of the place.
        """
        if not self.refused:
            return ()
        trials = {trial.cell: trial for grid in self.grids for trial in grid.trials()}
        places = {trial.cell[:2]: trial for trial in trials.values()}
        found = []
        for dataset, backbone, label, reason in self.refused:
            trial = trials.get((dataset, backbone, label)) or places[dataset, backbone]
            found.append((trial.model_copy(update={"arm": Arm.parse(label)}), reason))
        return tuple(found)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=1, allow_nan=False)
    files.put(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def now() -> str:
    """Return the time in ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
