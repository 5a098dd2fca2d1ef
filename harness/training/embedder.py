"""Embedding networks: any timm backbone, our own pooling and linear head, unit vectors out.

The differences between backbones are determined once, without weights (see `anatomy`). So a wrong choice is rejected
before anything is downloaded or trained, and a training step only runs the network.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.training import checkpoint, weights
from harness.training.anatomy import Anatomy, NotMixable, anatomy, more_rows
from harness.training.backbones import ModelError, Unavailable
from harness.training.head import FrozenEmbedder, build_head, unit
from harness.training.seeding import random_from

POOLINGS = ("avg", "max", "avg+max", "token")
NORMS = ("train", "frozen")


def problems(
    backbone: str,
    pooling: str = "avg",
    norm: str = "train",
    pretrained: bool | str | Path = True,
    stage: str | int | None = None,
    options: Mapping[str, Any] | None = None,
    side_px: int | None = None,
) -> list[str]:
    """Return everything wrong with this choice of network, one sentence each; [] means that `Embedder` accepts it.

    Downloads no weights, and does not check whether published weights can be fetched.
    """
    sentences = []
    if norm not in NORMS:
        sentences.append(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    if pooling not in POOLINGS:
        sentences.append(f"pooling is {pooling!r}; choose one of {', '.join(POOLINGS)}")
    if not isinstance(pretrained, bool) and not Path(pretrained).is_file():
        sentences.append(f"there is no weights file {str(pretrained)!r}; set pretrained to true, false or a file")
    try:
        body = anatomy(backbone, options, side_px)
        if stage is not None:
            body.resolve(stage)
    except ModelError as error:
        return [*sentences, str(error)]
    if pretrained is True and not body.config.get("url") and not body.config.get("hf_hub_id"):
        sentences.append(f"there are no published weights for {body.tag}; set pretrained to false or to a file")
    if pooling == "token" and not body.class_tokens:
        sentences.append(f"{backbone} has no class token to pool; use avg, max or avg+max")
    if pooling in ("avg", "max", "avg+max") and body.positions == 0:
        sentences.append(f"the last features of {backbone} are only its class token; use pooling token")
    return sentences


class Embedder(nn.Module):
    """A timm backbone, pooling over its last feature map, a linear head, and the projection on the unit sphere.

    `forward(images)` takes normalised float images (n, 3, side, side) and returns unit vectors (n, dim) in float32
    (float64 for float64 features). timm's own pooling and head are not used: its layers after the last feature map
    differ between networks, and its "avgmax" is half the published sum.

    backbone    a timm name, with or without a weights' tag ("resnet50.tv_in1k")
    dim         dimensions of the embedding, ≥ 1
    pooling     "avg", "max", "avg+max" (global average plus global maximum, summed, as in Kim et al. 2020), each
                over the patches alone where the features are tokens; or "token", the class token
    norm        "train", or "frozen": BatchNorm uses and keeps its running statistics, its affine parameters train
    pretrained  True: timm's published weights; False: random initial weights; or a file, safetensors or torch (read
                with weights_only=True), which must fill the backbone exactly; see `weights` for what is unwrapped
    mean, std, interpolation   how images are prepared (channels of pixels in [0, 1]; "bilinear" or "bicubic"); None
                takes the value from timm's configuration of the name
    options     keyword arguments for timm, such as {"drop_path_rate": 0.1}
    side_px     side of the images; needed if the backbone has a fixed size (most transformers) other than this one
    hidden      width of a hidden layer in the head (see `build_head`); None for a linear head
    generator   source of random initial weights (a torch generator or a seed), which leaves torch's own generator
                unchanged

    Attributes: `weights` (timm's tag of published weights such as "resnet50.tv_in1k", the name of a file, or None for
    initial weights), `weights_read` (what was unwrapped from a file, or None), `weights_digest` (sha256 of the file,
    or of the initial parameters if there is none); `mean`, `std`, `interpolation`; `tag` and `input_px` of timm's
    configuration of the name; `width`, the channels of the last feature map; `compiled`, a compiled forward pass of
    the backbone, used in training (see `compiled.compile_backbone`).

    Raises ModelError with everything that is wrong, Unavailable for weights that this machine cannot get.
    """

    def __init__(
        self,
        backbone: str,
        *,
        dim: int,
        pooling: str = "avg",
        norm: str = "train",
        pretrained: bool | str | Path = True,
        options: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str | None = None,
        side_px: int | None = None,
        hidden: int | None = None,
        generator: torch.Generator | int | None = None,
    ):
        super().__init__()
        faults = problems(backbone, pooling, norm, pretrained, None, options, side_px)
        if dim < 1:
            faults.append(f"dim is {dim}; an embedding has at least one dimension")
        if faults:
            missing = not isinstance(pretrained, bool) and not Path(pretrained).is_file()
            raise (Unavailable if missing else ModelError)("; ".join(faults))
        body = anatomy(backbone, options, side_px)
        self.name, self.options, self.side_px = backbone, dict(options or {}), body.side_px
        self.dim, self.hidden, self.pooling, self.norm = dim, hidden, pooling, norm
        self.tag, self.width = body.tag, body.width
        self.mean, self.std = _of_channels(mean or body.mean), _of_channels(std or body.std)
        self.interpolation, self.input_px = interpolation or body.interpolation, body.input_px
        self._all_set = bool(mean and std and interpolation)
        self._positions_axes, self._prefix = body.axes, body.prefix
        # Measured on two cores: with channels last, a step of a convolutional network takes 0.7 to 1.0 of the time.
        self._layout = torch.channels_last if body.axes == (2, 3) else torch.contiguous_format
        file = weights.file_of(body, pretrained)
        self.weights = body.tag if pretrained is True else file and file.name
        with random_from(generator):
            self.backbone, unwrapped = weights.build(body, file, published=pretrained is True)
            _lay_out(self.backbone, self._layout)
            self.head = build_head(self.width, dim, hidden)
        self.weights_read = unwrapped or None
        self.weights_digest = checkpoint.digest(file) if file else checkpoint.state_digest(self.state_dict())
        self._trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.train()

    @property
    def normalisation(self) -> dict[str, Any]:
        """Return how images are prepared; `config` names the timm configuration of values that were not set."""
        config = None if self._all_set else self.tag
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "config": config,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (n, dim) of normalised images (n, 3, side, side)."""
        return self._embed(self._features(images))

    def pooled(self, images: Tensor) -> Tensor:
        """Return pooled features (n, width) of normalised images, which the head maps to embeddings."""
        return self._pool(self._features(images))

    def train(self, mode: bool = True) -> "Embedder":
        """Set the training mode of everything but frozen BatchNorm, which stays in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for norm in batch_norms(self.backbone):
                norm.eval()
        return self

    def freeze_backbone(self, frozen: bool) -> None:
        """Train only the head (True), as in head warm-up, or all parameters that the backbone trains (False).

        BatchNorm obeys `norm` in both cases: with "train", running statistics change during warm-up.
        """
        for parameter in self._trained:
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None  # an optimiser would use a gradient that is left

    def stages(self) -> tuple[str, ...]:
        """Return the stages at which rows can be mixed, first to last; the last is the last feature map."""
        return self._anatomy.stages()

    def resolve_stage(self, stage: str | int) -> str:
        """Return the name of a stage, or of another module at which rows can be mixed; ModelError for any other."""
        return self._anatomy.resolve(stage)

    def forward_to(self, stage: str | int, images: Tensor) -> Tensor:
        """Return the last feature map of the images, before pooling, in the backbone's own layout.

        Raises ModelError for any stage but the last, because backbones in general cannot stop in the middle.
        """
        self._require_last(stage)
        return self._features(images)

    def forward_from(self, stage: str | int, maps: Tensor) -> Tensor:
        """Return unit embeddings (m, dim) of last feature maps (m, …), such as mixed ones: pooling and head only."""
        self._require_last(stage)
        return self._embed(maps)

    def forward_joint(
        self, stage: str | int, images: Tensor, mix: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings of the clean rows (n, dim) and of the rows mixed at `stage` (m, dim), from one pass.

        The stage's output h (n rows) is replaced by cat([h, mix(h)]), so that no row crosses a layer twice; `mix`
        maps (n, …) to (m, …). After the stage, BatchNorm in train mode sees both groups of rows.

        Raises ModelError, listing the stages, if the stage does not exist or does not run exactly once on one tensor
        of n rows, and under gradient checkpointing, which bypasses a module's hooks.
        """
        body = self._anatomy
        stage = body.resolve(stage)
        if stage == body.last:
            maps = self._features(images)
            embeddings = self._embed(torch.cat([maps, mix(maps)]))
            return embeddings[: len(images)], embeddings[len(images) :]
        if any(getattr(module, "grad_checkpointing", False) for module in self.backbone.modules()):
            raise ModelError(
                f"mixing at stage {stage!r} does not work with gradient checkpointing, which runs layers again in "
                "the backward pass without the mixed rows; turn it off: set_grad_checkpointing(False)"
            )
        try:
            with more_rows(self.backbone, stage, len(images), mix):
                features = self._features(images)
        except NotMixable as error:
            raise ModelError(body.rejection(stage, str(error))) from error
        embeddings = self._embed(features)
        return embeddings[: len(images)], embeddings[len(images) :]

    def share(self, stage: str | int, side_px: int | None = None) -> float:
        """Return the share, in [0, 1], of a forward pass's floating-point operations after `stage`, head included."""
        before, after = anatomy(self.name, self.options, side_px or self.side_px).flops(stage)
        head = 2 * sum(layer.weight.numel() for layer in self.head.modules() if isinstance(layer, nn.Linear))
        return (after + head) / (before + after + head)

    def last_map_is_1x1(self, side_px: int | None = None) -> bool:
        """Return whether the last feature map has a single position (a stride-32 network at 32 px).

        Mixing such a map, or any last map under linear pooling (`mixes_like_embeddings`), equals mixing embeddings
        before they are normalised.
        """
        return anatomy(self.name, self.options, side_px or self.side_px).positions <= 1

    def mixes_like_embeddings(self, side_px: int | None = None) -> bool:
        """Return whether pooling and head, all that follows the last feature map, are linear."""
        return self.hidden is None and (self.pooling in ("avg", "token") or self.last_map_is_1x1(side_px))

    @property
    def _anatomy(self) -> Anatomy:
        return anatomy(self.name, self.options, self.side_px)

    def _require_last(self, stage: str | int) -> None:
        body = self._anatomy
        if body.resolve(stage) != body.last:
            raise ModelError(
                f"{self.name} can be split only at its last feature map {body.last!r}, not at {stage!r}; "
                "for an earlier stage use forward_joint"
            )

    def _features(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self._layout)
        if self.compiled is not None and self.training and not _hooked(self.backbone):
            return self.compiled(images)
        return self.backbone.forward_features(images)

    def _embed(self, features: Tensor) -> Tensor:
        return unit(self.head(self._pool(features)))

    def _pool(self, features: Tensor) -> Tensor:
        if self.pooling == "token":
            return features[:, 0]
        if not self._positions_axes:
            return features
        patches = features[:, self._prefix :] if self._prefix else features
        if self.pooling == "avg":
            return patches.mean(self._positions_axes)
        if self.pooling == "max":
            return patches.amax(self._positions_axes)
        return patches.mean(self._positions_axes) + patches.amax(self._positions_axes)


class Wrapped(nn.Module):
    """A wrapper of an `Embedder` that passes everything through, state dict included, unless a subclass overrides it.

    So its checkpoints are those of the network itself, and callers need not know about the wrapper.
    """

    def __init__(self, model: "Network"):
        super().__init__()
        self.model = model
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(state, *args, **kwargs)


Network = Embedder | FrozenEmbedder | Wrapped


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers, in which rows affect each other during training."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _hooked(network: nn.Module) -> bool:
    """Return whether a module has a hook, which compiled code would not call."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def _of_channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """Set the memory layout of convolution weights; Module.to would reject five-dimensional ones."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
