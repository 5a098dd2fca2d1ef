"""What Ray adds: the share of the slots' time that trials fill, and the seconds until the first training step.

    share = Σ seconds of trials ÷ (slots × seconds of the grid)

The quick grid's aim is 0.85; it takes ten minutes, so without --full a part of it runs, whose start weighs more.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence

from harness.grid import Grid
from harness.launch import Unseen, run_grid

AIM, FIRST_STEP_S = 0.85, 20.0


class Watch(Unseen):
    """Notes when the first epoch ended and how long it took."""

    def __init__(self):
        self.first = None

    def progress(self, trial_id, epoch, epochs, loss, score):
        self.first = self.first or time.perf_counter()


def main() -> None:
    """Print the share and the start of a grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole quick grid, ten minutes on two cores")
    options = parser.parse_args()
    part: dict[str, Sequence[str]] = {} if options.full else {"seeds": ["0"], "losses": ["contrastive"]}
    grid, watch = Grid.load("quick", (), part), Watch()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        outcome = run_grid(grid, folder, watch=lambda screen: watch)
    filled = sum(record.cost.wall_s for record in outcome.records)
    epoch_s = min(
        record.curve[1].train_s + record.curve[1].validation_s for record in outcome.records if record.curve
    )
    what = "quick grid" if options.full else "quick grid, one loss and seed"
    slots = f"{round(outcome.slots, 1):g}"
    print(f"Ray's share, {what}: {len(outcome.records)} trials on {slots} slots in {outcome.wall_s:.0f} s")
    print(f"  slots filled {filled / (outcome.slots * outcome.wall_s):.2f}   (aim, whole grid: {AIM} or more)")
    assert watch.first is not None
    print(f"  first training step after about {watch.first - began - epoch_s:.0f} s   (aim: {FIRST_STEP_S:.0f} s)")


if __name__ == "__main__":
    main()
