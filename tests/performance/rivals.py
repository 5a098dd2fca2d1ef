"""What each rival adds to a loss at the embedding level.

Forward and backward in float32, n = 100 (20 classes of 5), d = 512; class vectors of 100 classes. Ratios within one
run: the variants take turns, and the median of the rounds counts.
"""

import argparse
from typing import Any

import torch

from metrix import rivals
from tests.performance.losses import batch, create, take_turns

LOSSES = ("contrastive", "multi_similarity", "norm_softmax", "proxy_anchor")
CLASSES, AIM = 100, 2.5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"rivals, {options.threads} thread(s), torch {torch.__version__}, median of {options.rounds} rounds")
    print(f"  aim: at most {AIM} × the clean loss")
    print(f"  {'rival':<20} {'loss':<18} {'clean':>9} {'with it':>9}  ratio")
    for name in rivals.names():
        for loss in LOSSES:
            if rivals.refusal(name, loss) is None:
                row(name, loss, options.rounds)


def row(name: str, of_loss: str, rounds: int) -> None:
    """Print the row of a rival and a loss, after its warm-up."""
    loss, (embeddings, labels) = create(of_loss, CLASSES), batch()
    at_input = rivals.find(name).mixes_at() == "input"
    settings: dict[str, Any] = {"at": "embedding"} if at_input else {}
    criterion = rivals.create(name, loss, generator=torch.Generator().manual_seed(0), **settings)
    criterion.start()
    seconds = take_turns(
        {"clean": lambda: loss(embeddings, labels), "with": lambda: criterion(embeddings, labels)}, rounds, embeddings
    )
    ratio = seconds["with"] / seconds["clean"]
    print(
        f"  {name:<20} {of_loss:<18} {seconds['clean'] * 1e3:6.3f} ms {seconds['with'] * 1e3:6.3f} ms  {ratio:4.2f} ×"
        f"  {'' if ratio <= AIM else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
