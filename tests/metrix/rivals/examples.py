"""The two worked examples of the rivals: six embeddings of three classes, and the vectors of their classes."""

from typing import Any

import torch

import baselines
from baselines.form import Loss

E1 = [[1, 0], [4 / 5, 3 / 5], [3 / 5, 4 / 5], [0, 1], [-3 / 5, 4 / 5], [-24 / 25, 7 / 25]], [0, 0, 1, 1, 2, 2]
E2 = [[1, 0], [4 / 5, 3 / 5], [0, 1], [3 / 5, 4 / 5], [-3 / 5, 4 / 5], [0, -1]], [0, 0, 0, 1, 1, 2]
CLASS_VECTORS = [[12 / 13, -5 / 13], [5 / 13, 12 / 13], [-12 / 13, 5 / 13]]
SECOND_CENTRES = [[24 / 25, 7 / 25], [8 / 17, 15 / 17], [-3 / 5, 4 / 5]]


def embeddings(rows: list[list[float]]) -> torch.Tensor:
    """Return rows as a leaf that takes a gradient, float64."""
    return torch.tensor(rows, dtype=torch.float64).requires_grad_()


def loss(name: str, **hyperparameters: Any) -> Loss:
    """Return a loss in float64; class vectors are those of the examples (two centres a class for SoftTriple)."""
    if baselines.describe(name).kind not in ("classes", "proxies"):
        return baselines.create(name, **hyperparameters).double()
    if name == "soft_triple":
        hyperparameters = {"centres": 2, **hyperparameters}
    made = baselines.create(name, num_classes=3, dim=2, **hyperparameters).double()
    vectors = torch.tensor(CLASS_VECTORS, dtype=torch.float64)
    if name == "soft_triple":
        vectors = torch.stack([vectors, torch.tensor(SECOND_CENTRES, dtype=torch.float64)], 1)
    made.proxies.data = vectors
    return made
