"""What a trial with a frozen backbone spends its time on, and how fast its features are computed and opened.

Ratios within one run, but for trials an hour. Without --data and --weights, the trials train on glyphs, and the
features are those of made photographs; the weights of both networks are random.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from harness.config import Choice, Trial
from harness.grid import Grid
from harness.launch import run_grid
from harness.runs.record import Cost
from harness.training.pictures import Sources, features_of, open_dataset
from tests.performance._features import FEATURE_BATCH, rates, weights
from tests.performance._pictures import photograph

AIM_SHARE, AIM_RATE, AIM_OPEN_S, AIM_HOUR = 0.9, 0.95, 0.1, 600


def main() -> None:
    """Print the figures; with --data and --weights those of the grid `photos` on your images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with a folder of photographs for each class")
    parser.add_argument("--weights", type=Path, help="a file of weights of the network")
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    options = parser.parse_args()
    if (options.data is None) != (options.weights is None):
        parser.error("--data and --weights go together")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        if options.data:
            grid, data = photos(options.network, options.weights), options.data
            compute(grid.trials()[0], data, folder)
        else:
            compute(photos("resnet18", weights("resnet18", folder)).trials()[0], photographs(folder), folder)
            grid, data = glyphs(weights("test_resnet", folder)), None
        run(grid, data, folder)


def photos(network: str, file: Path, *overrides: str) -> Grid:
    """The grid `photos` with four seeds, another network and its weights, and without the floor of pixels."""
    grid = Grid.load("photos", ["floors=[features,untrained]", "seeds=[0,1,2,3]", *overrides])
    backbone = grid.backbones[0].model_copy(update={"name": network, "pretrained": str(file)})
    return grid.model_copy(update={"backbones": (backbone,)})


def glyphs(file: Path) -> Grid:
    """The same grid on glyphs, with a small network."""
    grid = photos("test_resnet", file, "images.side_px=32", "images.cache_side_px=32")
    return grid.model_copy(update={"datasets": (Choice(name="glyphs"),)})


def photographs(folder: Path) -> Path:
    """A folder of 8 classes with 80 photographs each."""
    generator = np.random.default_rng(0)
    for i in range(8 * 80):
        path = folder / f"photographs/{i % 8}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(generator, 300, 225).save(path, quality=85)
    return folder / "photographs"


def compute(trial: Trial, data: Path, folder: Path) -> None:
    """Seconds of a batch of features and of the bare network, and seconds to open the features."""
    dataset, sources = open_dataset(trial.dataset, data), Sources(folder, data)
    batches, bare = rates(trial, dataset, sources)
    began, again = time.perf_counter(), []
    features_of(trial, dataset, sources, progress=lambda *done: again.append(done))
    opened, ratio = time.perf_counter() - began, statistics.median(bare) / statistics.median(batches)
    print(
        f"features of {len(dataset)} images of {trial.images.side_px} px from {trial.backbone.name}: {FEATURE_BATCH} "
        f"in {statistics.median(batches):.2f} s, {ratio:.2f} of the bare network's rate (aim: {AIM_RATE} or more)\n"
        f"  opened in {opened:.3f} s (aim: under {AIM_OPEN_S}), {len(again)} batches computed again"
    )


def run(grid: Grid, data: Path | None, folder: Path) -> None:
    """Trials an hour on this machine, Ray's share included, after its start; and what the trials spent time on."""
    outcome = run_grid(grid, folder / "grid", data)
    filled = sum(record.cost.wall_s for record in outcome.records)
    rate, cores = 3600 * len(outcome.records) / outcome.wall_s, len(os.sched_getaffinity(0))
    print(
        f"{len(outcome.records)} trials under Ray in {outcome.wall_s:.0f} s on {cores} cores: {rate:.0f} an hour "
        f"(aim on two cores: {AIM_HOUR} or more); slots filled {filled / (outcome.slots * outcome.wall_s):.2f}"
    )
    print(f"share of a trial's seconds in training steps, median of {len(grid.seeds)} (aim: {AIM_SHARE} or more)")
    costs: dict[str, list[Cost]] = defaultdict(list)
    for record in outcome.records:
        if record.curve:
            costs[record.arm].append(record.cost)
    for arm, own in costs.items():
        share = statistics.median(cost.train_s / cost.wall_s for cost in own)
        saved = statistics.median(cost.checkpoint_s / cost.wall_s for cost in own)
        wall_s = statistics.median(cost.wall_s for cost in own)
        print(f"  {arm:28} {share:.2f}   checkpoints {saved:.2f}   of {wall_s:.1f} s")


if __name__ == "__main__":
    main()
