"""A Metrix loss in a training loop of your own.

    python examples/training_loop.py [--steps 200]

The loop is plain PyTorch. It trains one small network with a loss and another with the Metrix variant of that loss,
on the same batches, and scores both by exact retrieval on classes that were not trained on.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

import baselines
import harness
import metrix
from harness.data import datasets

CLASSES, EACH = 10, 4  # of a batch


def network() -> nn.Module:
    """Return a network from images (n, 1, 32, 32) to embeddings (n, 64), the same at each call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64))


def characters(split: str) -> tuple[Tensor, Tensor]:
    """Return the images (n, 1, 32, 32) in [0, 1] and labels (n,) of a split of the built-in dataset."""
    glyphs = datasets.load("glyphs", classes=60)
    rows = np.flatnonzero(glyphs.split == split)
    images = np.stack([np.asarray(glyphs.read(int(i)), dtype=np.float32) for i in rows]) / 255
    return torch.from_numpy(images)[:, None], torch.from_numpy(glyphs.labels[rows])


def train(criterion: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Train a network with a criterion and return it."""
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    of_class = [(labels == c).nonzero().flatten() for c in labels.unique()]
    draws = np.random.default_rng(0)
    for _ in range(steps):
        chosen = draws.choice(len(of_class), CLASSES, replace=False)
        batch = np.concatenate([draws.choice(of_class[c].numpy(), EACH) for c in chosen])
        loss = criterion(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    """Train both networks and print their scores."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=200)
    steps = options.parse_args().steps
    train_images, train_labels = characters("train")
    test_images, test_labels = characters("test")

    loss = baselines.create("multi_similarity")
    for name, criterion in {"multi_similarity": loss, "with Metrix": metrix.Metrix(loss)}.items():
        model = train(criterion, train_images, train_labels, steps)
        with torch.no_grad():
            embeddings = model(test_images)
        found = harness.evaluate(embeddings, test_labels, ks=(1, 4))
        print(f"{name:18}", "  ".join(f"{metric} {value:.3f}" for metric, value in found.values.items()))


if __name__ == "__main__":
    main()
