"""What a trial with a frozen backbone spends its time on, and how fast its features are computed and opened.

Ratios within one run, but for trials an hour. Without --data and --weights, the trials train on glyphs, and the
features are those of made photographs; the weights of both networks are random.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from harness.config import Choice, Trial
from harness.grid import Grid
from harness.launch import run_grid
from harness.training.network import build_embedder
from harness.training.pictures import FEATURE_BATCH, Sources, features_of, images_of, open_dataset
from harness.training.trial import run_trial
from tests.performance._pictures import photograph

AIM_SHARE, AIM_RATE, AIM_OPEN_S, AIM_HOUR = 0.9, 0.95, 0.1, 600


def main() -> None:
    """Print the figures; with --data and --weights those of the grid `photos` on your images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with a folder of photographs for each class")
    parser.add_argument("--weights", type=Path, help="a file of weights of the network")
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=3)
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
        train(grid, data, folder, options.rounds)
        hour(grid, data, folder)


def photos(network: str, file: Path, *overrides: str) -> Grid:
    """The grid `photos` with one seed, another network and its weights, and without the floor of pixels."""
    grid = Grid.load("photos", ["floors=[features,untrained]", "seeds=[0,1,2,3]", *overrides])
    backbone = grid.backbones[0].model_copy(update={"name": network, "pretrained": str(file)})
    return grid.model_copy(update={"backbones": (backbone,)})


def glyphs(file: Path) -> Grid:
    """The same grid on glyphs, with a small network."""
    grid = photos("test_resnet", file, "images.side_px=32", "images.cache_side_px=32")
    return grid.model_copy(update={"datasets": (Choice(name="glyphs"),)})


def weights(network: str, folder: Path) -> Path:
    """A file of random weights."""
    path = folder / f"{network}.safetensors"
    save_file(timm.create_model(network).state_dict(), path)
    return path


def photographs(folder: Path) -> Path:
    """A folder of 8 classes with 80 photographs each."""
    generator = np.random.default_rng(0)
    for i in range(8 * 80):
        path = folder / f"photographs/{i % 8}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(generator, 300, 225).save(path, quality=85)
    return folder / "photographs"


def compute(trial: Trial, data: Path, folder: Path) -> None:
    """Seconds of a batch of features and of the bare network, which take turns, and seconds to open the features."""
    dataset, sources = open_dataset(trial.dataset, data), Sources(folder, data)
    images_of(trial, dataset, sources)
    network, side = build_embedder(trial).eval(), trial.images.side_px
    batch = torch.randn(FEATURE_BATCH, 3, side, side)
    ends, bare = [], []

    @torch.inference_mode()
    def after_a_batch(done: int, count: int) -> None:
        began = time.perf_counter()
        network.pooled(batch)
        ends.append((began, time.perf_counter()))
        bare.append(ends[-1][1] - began)

    features_of(trial, dataset, sources, progress=after_a_batch)
    batches, computed = [began - ended for (_, ended), (began, _) in pairwise(ends)], len(ends)
    began = time.perf_counter()
    features_of(trial, dataset, sources, progress=after_a_batch)
    opened, ratio = time.perf_counter() - began, statistics.median(bare) / statistics.median(batches)
    print(
        f"features of {len(dataset)} images of {side} px from {trial.backbone.name}: {FEATURE_BATCH} in "
        f"{statistics.median(batches):.2f} s, {ratio:.2f} of the bare network's rate (aim: {AIM_RATE} or more)\n"
        f"  opened in {opened:.3f} s (aim: under {AIM_OPEN_S}), {len(ends) - computed} batches computed again"
    )


def train(grid: Grid, data: Path | None, folder: Path, rounds: int) -> None:
    """The share of its seconds that a trial spends in training steps, for some arms, one thread."""
    trials = {trial.arm.label: trial for trial in grid.trials() if trial.seed == 0}
    some = [name for name in trials if name.startswith(("contrastive", "proxy_anchor"))]
    run_trial(trials[some[0]], folder / "warm", data)
    print(f"share of a trial's seconds in training steps, median of {rounds} (aim: {AIM_SHARE} or more)")
    for name in some:
        costs = [run_trial(trials[name], folder / f"run{i}", data).cost for i in range(rounds)]
        share = statistics.median(cost.train_s / cost.wall_s for cost in costs)
        wall_s = statistics.median(cost.wall_s for cost in costs)
        saved = statistics.median(cost.checkpoint_s / cost.wall_s for cost in costs)
        print(f"  {name:24} {share:.2f}   checkpoints {saved:.2f}   of {wall_s:.1f} s")


def hour(grid: Grid, data: Path | None, folder: Path) -> None:
    """Trials an hour on this machine, Ray's share included, after its start."""
    outcome = run_grid(grid, folder / "grid", data)
    filled = sum(record.cost.wall_s for record in outcome.records)
    rate, cores = 3600 * len(outcome.records) / outcome.wall_s, len(os.sched_getaffinity(0))
    print(
        f"{len(outcome.records)} trials under Ray in {outcome.wall_s:.0f} s on {cores} cores: {rate:.0f} an hour "
        f"(aim on two cores: {AIM_HOUR} or more); slots filled {filled / (outcome.slots * outcome.wall_s):.2f}"
    )


if __name__ == "__main__":
    main()
