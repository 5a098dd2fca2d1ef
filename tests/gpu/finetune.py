"""Fine-tune losses and levels on photographs from the given weights; the records are kept."""

import time
import zipfile
from collections import defaultdict
from pathlib import Path
from statistics import mean
from unittest import SkipTest

from harness.runs.record import Record
from harness.runs.run import Run
from tests.gpu.place import Place

ARMS = tuple(
    f"{loss}{level}"
    for loss in ("contrastive", "multi_similarity")
    for level in ("", "+embedding", "+feature", "+input")
)
RUN = "finetune"
FIRST_S = 10.0  # what a trial is taken to need before one has run


def finetune(place: Place) -> None:
    """Train each loss and level, seed by seed, while time is left; `records.zip` continues where it stopped."""
    if place.given is None or place.weights is None:
        raise SkipTest("needs photographs (--data) and weights (--weights)")
    packed, folder = place.out / "records.zip", place.scratch / RUN
    if packed.exists():
        with zipfile.ZipFile(packed) as before:
            before.extractall(folder)
    kept = {path.name for path in (folder / "records").glob("*.json")}
    took: dict[str, float] = {}
    scores: dict[str, list[float]] = defaultdict(list)
    left_out = []
    for seed in range(place.sizes.tuned_seeds):
        for arm in ARMS:
            trial = place.large(
                place.weights.stem, arm, seed, epochs=place.sizes.tuned_epochs, lr=1e-4, schedule="cosine"
            )
            needed = 1.2 * took.get(arm, max(took.values(), default=FIRST_S))
            if f"{trial.id}.json" not in kept and place.left_s < needed:
                left_out.append(f"{arm} seed {seed}")
                continue
            began = time.perf_counter()
            record = place.run(trial, RUN, data=place.data)
            if f"{trial.id}.json" not in kept:
                took[arm] = time.perf_counter() - began
                keep(packed, Run(folder).record_path(trial))
            scores[arm].append(100 * record.test["R@1"])
            place.note(f"{place.weights.stem} fine-tuned, {arm}, seed {seed}, R@1", scores[arm][-1], "%")
    if scores:
        summary(place, scores, record)
    if left_out:
        raise SkipTest(f"no time was left for {', '.join(left_out)}; the same command goes on with them")


def keep(packed: Path, path: Path) -> None:
    """Add a record to the zip."""
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as records:
        records.write(path, f"records/{path.name}")


def summary(place: Place, scores: dict[str, list[float]], last: Record) -> None:
    """Return the mean of each arm over the seeds that ran."""
    at = f"{place.weights.stem} fine-tuned for {place.sizes.tuned_epochs} epochs"
    for arm, found in scores.items():
        place.note(f"{at}, {arm}, R@1, mean of {len(found)} seeds", mean(found), "%")
    place.note(f"{at}, images", ", ".join(f"{count:,} {split}" for split, count in last.data.images.items()))
