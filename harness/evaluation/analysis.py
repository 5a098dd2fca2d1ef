"""What a record says of the embedding space when a grid asks: alignment, uniformity, utilization, positivity."""

from typing import Any

import torch
from torch import Tensor, nn

import metrix
from harness.streams import stream

POINTS = 5000  # training points that utilization compares with, at most: it falls by itself when there are more


def analyse(
    seed: int, test: Tensor, labels: Tensor, train: Tensor, train_labels: Tensor, loss: nn.Module | None
) -> dict[str, Any]:
    """The analysis of test embeddings (q, d) with labels (q,), against training embeddings (n, d) and the loss.

    Utilization compares with equally many random training points wherever there are at least `POINTS`; their number
    is given beside it. Positivity is measured on one batch of 20 training classes, for losses with clean anchors;
    elsewhere there is none. Venkataramanan et al., ICLR 2022, sections 3.5, 4.4; Wang and Isola, ICML 2020.
    """
    points = min(POINTS, len(train))
    generator = torch.Generator().manual_seed(stream(seed, "utilization"))
    found: dict[str, Any] = {
        "alignment": metrix.alignment(test, labels),
        "uniformity": metrix.uniformity(test),
        "utilization": metrix.utilization(test, train, points, generator),
        "utilization_points": points,
    }
    if getattr(loss, "mixed", None) == "candidates":
        few = torch.cat([(train_labels == c).nonzero().flatten()[:5] for c in train_labels.unique()[:20]])
        curve = metrix.positivity(train[few], train_labels[few], loss)
        found["positivity"] = {
            "lambda": list(curve.lambdas),
            "measured": list(curve.measured),
            "closed_form": curve.closed_form and list(curve.closed_form),
            "gap": curve.gap and list(curve.gap),
        }
    return found
