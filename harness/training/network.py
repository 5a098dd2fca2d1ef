"""The network of a trial and the transform of its images, as its settings describe them."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config import FEATURES, PIXELS, PIXELS_PX, Trial
from harness.data.datasets import Dataset
from harness.data.loading import Augmentation
from harness.streams import stream
from harness.training.anatomy import anatomy
from harness.training.embedder import Embedder, Network, Wrapped
from harness.training.features import Features, Views
from harness.training.head import FrozenEmbedder


class Pixels(nn.Flatten):
    """Flatten images (n, 3, side, side) in [0, 1] to vectors, for the floor that compares pixels by cosine.

    Larger images are averaged to a side of 64 pixels. A black image has no direction and counts as evenly grey, the
    limit of ever darker grey.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return vectors (n, 3·min(side, 64)²), none of them zero."""
        large = input.shape[-1] > PIXELS_PX
        vectors = super().forward(F.adaptive_avg_pool2d(input, PIXELS_PX) if large else input)
        return torch.where(vectors.any(dim=1, keepdim=True), vectors, 1.0)


class Headless(Wrapped):
    """A network without its head, for the floor of its own pooled features, compared by cosine."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features at unit length (n, width) of images (n, 3, side, side)."""
        return F.normalize(self.model.pooled(images).float(), dim=1)


def network_of(trial: Trial, pictures: object, dataset: Dataset) -> tuple[Network | Pixels, Augmentation | Views]:
    """Return the network that a trial trains or tests, and the transform of what it sees.

    It is an embedder, its head alone if `pictures` are features, or what a floor compares.
    """
    if trial.arm.loss == PIXELS:
        return (pixels := Pixels()), augmentation(trial, pixels, dataset)
    if isinstance(pictures, Features):
        sizes = {"dim": trial.model.dim, "hidden": trial.model.hidden}
        network, transform = FrozenEmbedder(pictures.about, **sizes, generator=_initial(trial)), Views()
    else:
        network = build_embedder(trial)
        transform = augmentation(trial, network, dataset)
    return Headless(network) if trial.arm.loss == FEATURES else network, transform


def on_noise(trial: Trial) -> tuple[Embedder | FrozenEmbedder, tuple[int, ...]]:
    """Return a network like that of a trial, and the shape of a row of its input, to measure it without data."""
    if trial.model.backbone == "trained":
        side = trial.images.side_px
        return build_embedder(trial), (3, side, side)
    width = anatomy(trial.backbone.name, trial.backbone.options, trial.images.side_px).width
    about = dict.fromkeys(("weights", "weights_read", "weights_digest", "normalisation")) | {"width": width}
    return FrozenEmbedder(about, dim=trial.model.dim, hidden=trial.model.hidden, generator=0), (width,)


def _initial(trial: Trial) -> torch.Generator:
    """Return the source of initial weights, which depends on seed, dataset and backbone, never on the arm."""
    return torch.Generator().manual_seed(
        stream(trial.seed, trial.dataset.name, trial.backbone.name, "initial weights")
    )


def build_embedder(trial: Trial) -> Embedder:
    """Build the whole network of a trial, from images to embeddings."""
    return Embedder(
        trial.backbone.name,
        dim=trial.model.dim,
        pooling=trial.model.pooling,
        norm=trial.model.norm,
        pretrained=trial.backbone.pretrained,
        options=trial.backbone.options,
        mean=trial.backbone.mean,
        std=trial.backbone.std,
        interpolation=trial.backbone.interpolation,
        side_px=trial.images.side_px,
        hidden=trial.model.hidden,
        generator=_initial(trial),
    )


def augmentation(trial: Trial, model: Embedder | Pixels, dataset: Dataset) -> Augmentation:
    """Return the crops and flips of a trial, normalised for its weights; plain images in [0, 1] for `pixels`."""
    images = trial.images
    if isinstance(model, Pixels):
        return Augmentation(
            images.side_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), centre_share=images.centre_share
        )
    return replace(
        evaluation(trial, model),
        crop_scale=images.crop_scale,
        crop_ratio=images.crop_ratio,
        flip=dataset.mirrored if images.flip == "auto" else images.flip,
    )


def evaluation(trial: Trial, model: Embedder) -> Augmentation:
    """Return how a trial prepares test images for its network; the crops and flips of training are not set."""
    images = trial.images
    return Augmentation(
        images.side_px,
        mean=model.mean,
        std=model.std,
        interpolation=model.interpolation,
        centre_share=images.centre_share,
    )
