"""Measure the embedding space for a record, if a grid asks for it: alignment, uniformity, utilization, positivity."""

from typing import Any

import torch
from torch import Tensor

import metrix
from baselines.form import Loss
from harness.streams import stream

POINTS = 5000  # most training points that utilization compares with: more of them lower it by themselves


def analyse(
    seed: int, test: Tensor, labels: Tensor, train: Tensor, train_labels: Tensor, loss: Loss | None
) -> dict[str, Any]:
    """Analyse test embeddings (q, d) with labels (q,), against training embeddings (n, d) and the loss.

    Utilization uses min(`POINTS`, n) random training points and reports their number. Positivity is measured on one
    batch of 20 training classes, only for losses with clean anchors.

    Venkataramanan et al., ICLR 2022, sections 3.5, 4.4; Wang and Isola, ICML 2020.
    """
    points = min(POINTS, len(train))
    generator = torch.Generator().manual_seed(stream(seed, "utilization"))
    measures: dict[str, Any] = {
        "alignment": metrix.alignment(test, labels),
        "uniformity": metrix.uniformity(test),
        "utilization": metrix.utilization(test, train, points, generator),
        "utilization_points": points,
    }
    if loss is not None and loss.mixed == "candidates":
        batch = torch.cat([(train_labels == c).nonzero().flatten()[:5] for c in train_labels.unique()[:20]])
        curve = metrix.positivity(train[batch], train_labels[batch], loss)
        measures["positivity"] = {
            "lambda": list(curve.lambdas),
            "measured": list(curve.measured),
            "closed_form": curve.closed_form and list(curve.closed_form),
            "gap": curve.gap and list(curve.gap),
        }
    return measures
