"""The head of an embedder: from pooled features to unit embeddings; and the embedder that is only a head."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config import Trial
from harness.training.backbones import ModelError
from harness.training.seeding import random_from
from metrix import rivals

POOLED = "pooled"  # the one stage of a frozen backbone


def build_head(width: int, dim: int, hidden: int | None = None) -> nn.Linear | nn.Sequential:
    """Return a linear head from `width` to `dim` dimensions, or an MLP with one hidden layer (ReLU) of that width.

    Weights are initialised as in Kim et al. 2020: normal with fan-out, and a trained bias that starts at 0.
    """
    if hidden is None:
        return _linear(width, dim)
    return nn.Sequential(_linear(width, hidden), nn.ReLU(), _linear(hidden, dim))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    nn.init.zeros_(layer.bias)
    return layer


def unit(embeddings: Tensor) -> Tensor:
    """Return rows (n, d) at unit length, in float32 (float64 for float64 rows)."""
    if embeddings.dtype != torch.float64:
        embeddings = embeddings.float()
    # eps is far below the norm of any trained embedding; at zero it keeps the gradient finite.
    return F.normalize(embeddings, dim=1, eps=1e-6)


def frozen_problem(trial: Trial) -> str | None:
    """Return why a trial cannot run with a frozen backbone; None if it can, or does not freeze its backbone."""
    if trial.model.backbone != "frozen":
        return None
    if trial.backbone.pretrained is False:
        return (
            f"model.backbone is frozen, but {trial.backbone.name} has no pretrained weights: set pretrained to true "
            "or to a file of weights"
        )
    if trial.images.decoder != "pillow":
        return (
            f"a frozen backbone sees each image once, decoded by pillow: remove images.decoder {trial.images.decoder}"
        )
    level, rival = trial.arm.metrix, trial.arm.rival
    inputs = [level.at == "input"] if level else []
    inputs += [rivals.find(rival.at).mixes_at(**rival.options) == "input"] if rival else []
    if any(inputs):
        return (
            "a frozen backbone computes the features of each image once, so there is no mixed image to compute them "
            "of: mix at embedding or feature, or set model.backbone to trained"
        )
    if level is not None and level.at == "feature" and level.stage not in (None, POOLED):
        return f"a frozen backbone has one stage to mix at, {POOLED!r}, not {level.stage!r}; remove the stage"
    return None


class FrozenEmbedder(nn.Module):
    """An embedder whose backbone is frozen: a head on pooled features (n, width), which are computed beforehand.

    It has the methods of `Embedder`, with features in place of images and one stage, `pooled`. The names of its
    parameters are those of the embedder's head.

    about      what the features come from (see `features.Features`); its width, weights and normalisation count here
    dim        dimensions of the embedding
    hidden     width of a hidden layer; None for a linear head
    generator  source of the initial weights
    """

    norm = "frozen"
    exact = True  # in chunks it computes what it computes at once

    def __init__(
        self,
        about: Mapping[str, Any],
        *,
        dim: int,
        hidden: int | None = None,
        generator: torch.Generator | int | None = None,
    ):
        super().__init__()
        self.width, self.dim, self.hidden = about["width"], dim, hidden
        self.weights, self.weights_read = about["weights"], about["weights_read"]
        self.weights_digest, self.normalisation = about["weights_digest"], about["normalisation"]
        with random_from(generator):
            self.head = build_head(self.width, dim, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Return unit embeddings (n, dim) of pooled features (n, width)."""
        return unit(self.head(features))

    def pooled(self, features: Tensor) -> Tensor:
        """Return the features unchanged: they are pooled."""
        return features

    def freeze_backbone(self, frozen: bool) -> None:
        """Do nothing: the head is all that trains, as in a head warm-up."""

    def stages(self) -> tuple[str, ...]:
        """Return the only stage at which rows can be mixed."""
        return (POOLED,)

    def resolve_stage(self, stage: str | int) -> str:
        """Return the name of a stage; raise ModelError for any but the one there is."""
        if stage not in (POOLED, 0, -1):
            raise ModelError(f"a frozen backbone has one stage, {POOLED!r}, not {stage!r}")
        return POOLED

    def forward_to(self, stage: str | int, features: Tensor) -> Tensor:
        """Return the features: those of the stage."""
        self.resolve_stage(stage)
        return features

    def forward_from(self, stage: str | int, maps: Tensor) -> Tensor:
        """Return unit embeddings (m, dim) of features (m, width), such as mixed ones."""
        self.resolve_stage(stage)
        return self.forward(maps)

    def forward_joint(
        self, stage: str | int, images: Tensor, mix: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings of the clean rows (n, dim) and of the mixed rows (m, dim)."""
        self.resolve_stage(stage)
        embeddings = self.forward(torch.cat([images, mix(images)]))
        return embeddings[: len(images)], embeddings[len(images) :]

    def share(self, stage: str | int, side_px: int | None = None) -> float:
        """Return the share of a forward pass after `stage`: 1, since the head is all that runs."""
        self.resolve_stage(stage)
        return 1.0

    def mixes_like_embeddings(self, side_px: int | None = None) -> bool:
        """Return whether the head is linear, so that mixing features equals mixing unnormalised embeddings."""
        return self.hidden is None
