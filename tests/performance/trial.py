"""Training throughput of a whole trial against the bare network's forward, backward and optimiser step.

The trial's time includes batches, augmentation, loss, clipping and the checks of the loss too; its checkpoints are
timed apart and added. Ratios within one run: the bare network and the trial take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from harness.grid import Grid
from harness.training.network import build_embedder
from harness.training.trial import run_trial

AIM = 0.92


def main() -> None:
    """Print images per second of both and their ratio, for the quick grid's baselines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="quick")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = Grid.load(options.grid, [f"epochs={options.epochs}"], {"seeds": ["0"]})
    print(f"training throughput, images per second, one thread, median of {options.rounds} (aim: {AIM:.0%} or more)")
    for trial in grid.trials():
        if trial.arm.at != "baseline":
            continue
        bare, whole = [], []
        for _ in range(options.rounds):
            bare.append(_bare(trial, steps=30))
            with tempfile.TemporaryDirectory() as folder:
                record = run_trial(trial, Path(folder))
            seconds = record.cost.train_s + record.cost.checkpoint_s
            whole.append(record.cost.images_seen / seconds)
        ratio = statistics.median(w / b for w, b in zip(whole, bare, strict=True))
        print(
            f"  {trial.arm.label:18} bare {statistics.median(bare):7.0f}   trial {statistics.median(whole):7.0f}"
            f"   ratio {ratio:.2f}"
        )


def _bare(trial, steps: int) -> float:
    network = build_embedder(trial).train()
    settings, side = trial.training, trial.images.side_px
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
    images, began = torch.randn(settings.batch_size, 3, side, side), 0.0
    for step in range(-3, steps):
        if step == 0:
            began = time.perf_counter()
        optimizer.zero_grad()
        network(images).sum().backward()
        optimizer.step()
    return steps * settings.batch_size / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
