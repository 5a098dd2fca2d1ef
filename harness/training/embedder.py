"""Embedding networks: any timm backbone, our own pooling and linear head, unit vectors out.

This file is the only one that knows timm. Backbones differ in what their features look like (channels first or
last, tokens with or without class tokens), in where they can be entered, and in whether their input size is fixed.
All of that is found out once, by forwards without weights on torch's meta device (`Anatomy`), so that a wrong
name, option or stage is refused in words before anything is downloaded or trained, and a training step does
nothing but run the network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.training import checkpoint, weights
from harness.training.anatomy import Anatomy, NotMixable, anatomy, more_rows
from harness.training.backbones import ModelError, Unavailable

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
    """Everything wrong with this choice of network, one sentence each; empty means that `Embedder` will take it.

    Needs no weights and downloads none: whether published weights can be fetched shows when they are.
    """
    found = []
    if norm not in NORMS:
        found.append(f"norm is {norm!r}; it is one of {', '.join(NORMS)}")
    if pooling not in POOLINGS:
        found.append(f"pooling is {pooling!r}; it is one of {', '.join(POOLINGS)}")
    if not isinstance(pretrained, bool) and not Path(pretrained).is_file():
        found.append(f"there is no weights file {str(pretrained)!r}; pretrained is true, false or a file")
    try:
        body = anatomy(backbone, options, side_px)
        if stage is not None:
            body.resolve(stage)
    except ModelError as error:
        return [*found, str(error)]
    if pretrained is True and not body.config.get("url") and not body.config.get("hf_hub_id"):
        found.append(f"there are no published weights for {body.tag}; set pretrained to false or to a file")
    if pooling == "token" and not body.class_tokens:
        found.append(f"{backbone} has no class token to pool; use avg, max or avg+max")
    if pooling in ("avg", "max", "avg+max") and body.positions == 0:
        found.append(f"the last features of {backbone} are its class token alone; use pooling token")
    return found


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
    pretrained  True: timm's published weights; False: initial weights; or a file, safetensors or torch (read with
                weights_only=True), which must fill the backbone exactly; see `weights` for what is unwrapped
    mean, std, interpolation   how images are prepared (channels of pixels in [0, 1]; "bilinear" or "bicubic"); what
                is None is taken from timm's configuration of the name
    options     keyword arguments for timm, such as {"drop_path_rate": 0.1}
    side_px     side of the images; needed where the backbone fixes it (most transformers) and differs from its own
    generator   where initial weights are drawn from (a torch generator or a seed); torch's own generator is then
                left as it was. The head is drawn like that of Kim et al. 2020: weights normal with fan-out, a bias
                that begins at 0 and trains.

    Attributes: `weights` (what was loaded: timm's tag of published weights such as "resnet50.tv_in1k", the name of a
    file, None for initial weights), `weights_read` (what was unwrapped of a file, or None), `weights_digest` (sha256
    of the weights' file, or of the initial parameters where none is loaded); `mean`, `std`, `interpolation`;
    `tag` and `input_px` of timm's configuration of the name; `width`, the channels of the last feature map.

    Raises ModelError with everything that is wrong.
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
        generator: torch.Generator | int | None = None,
    ):
        super().__init__()
        found = problems(backbone, pooling, norm, pretrained, None, options, side_px)
        if dim < 1:
            found.append(f"dim is {dim}; an embedding has at least one dimension")
        if found:
            absent = not isinstance(pretrained, bool) and not Path(pretrained).is_file()
            raise (Unavailable if absent else ModelError)("; ".join(found))
        body = anatomy(backbone, options, side_px)
        self.name, self.options, self.side_px = backbone, dict(options or {}), body.side_px
        self.dim, self.pooling, self.norm = dim, pooling, norm
        self.tag, self.width = body.tag, body.width
        self.mean, self.std = tuple(mean or body.mean), tuple(std or body.std)
        self.interpolation, self.input_px = interpolation or body.interpolation, body.input_px
        self._all_given = bool(mean and std and interpolation)
        self._positions_axes, self._prefix = body.axes, body.prefix
        # Measured on two cores: a step of a convolutional network takes 0.7 to 1.0 of its time with channels last.
        self._layout = torch.channels_last if body.axes == (2, 3) else torch.contiguous_format
        file = weights.file_of(body, pretrained)
        self.weights = body.tag if pretrained is True else file and file.name
        with _drawn_from(generator):
            self.backbone, said = weights.build(body, file, published=pretrained is True)
            _lay_out(self.backbone, self._layout)
            self.head = nn.Linear(self.width, dim)
            nn.init.kaiming_normal_(self.head.weight, mode="fan_out")
            nn.init.zeros_(self.head.bias)
        self.weights_read = said or None
        self.weights_digest = checkpoint.digest(file) if file else checkpoint.state_digest(self.state_dict())
        self._trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        self.train()

    @property
    def normalisation(self) -> dict[str, Any]:
        """How images are prepared; `config`: whose timm configuration says what was not given, None if all was."""
        config = None if self._all_given else self.tag
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "config": config,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings (n, dim) of normalised images (n, 3, side, side)."""
        return self._embed(self._features(images))

    def train(self, mode: bool = True) -> "Embedder":
        """Set the training mode of everything but frozen BatchNorm, which stays in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for norm in batch_norms(self.backbone):
                norm.eval()
        return self

    def freeze_backbone(self, frozen: bool) -> None:
        """Train the head alone (True), as in head warm-up, or all that the backbone trains by itself (False).

        BatchNorm follows `norm` all the same: in "train", running statistics move during warm-up.
        """
        for parameter in self._trained:
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None  # an optimiser steps along any gradient that is left

    def stages(self) -> tuple[str, ...]:
        """The stages at which rows can be mixed, first to last; the last is the last feature map."""
        return self._anatomy.stages()

    def forward_to(self, stage: str | int, images: Tensor) -> Tensor:
        """The last feature map of the images, before pooling, in the backbone's own layout.

        Raises ModelError for another stage than the last: a general backbone cannot be left in the middle.
        """
        self._require_last(stage)
        return self._features(images)

    def forward_from(self, stage: str | int, maps: Tensor) -> Tensor:
        """Unit embeddings (m, dim) of last feature maps (m, …), such as mixed ones: pooling and head only."""
        self._require_last(stage)
        return self._embed(maps)

    def forward_joint(
        self, stage: str | int, images: Tensor, mix: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of the clean rows (n, dim) and of the rows mixed at `stage` (m, dim), in one pass.

        The stage's output h (n rows) is replaced by cat([h, mix(h)]), so no row crosses a layer twice; `mix` maps
        (n, …) to (m, …). After the stage, BatchNorm in train mode sees both groups of rows.

        Raises ModelError, listing the stages, where the stage does not exist or does not run exactly once on one
        tensor of n rows; and under gradient checkpointing, which passes by a module's hooks.
        """
        body = self._anatomy
        stage = body.resolve(stage)
        if stage == body.last:
            maps = self._features(images)
            embeddings = self._embed(torch.cat([maps, mix(maps)]))
            return embeddings[: len(images)], embeddings[len(images) :]
        if any(getattr(module, "grad_checkpointing", False) for module in self.backbone.modules()):
            raise ModelError(
                f"mixing at stage {stage!r} does not go with gradient checkpointing, which runs layers again in the "
                "backward pass without the mixed rows; turn it off: set_grad_checkpointing(False)"
            )
        try:
            with more_rows(self.backbone, stage, len(images), mix):
                features = self._features(images)
        except NotMixable as error:
            raise ModelError(body.refused(stage, str(error))) from error
        embeddings = self._embed(features)
        return embeddings[: len(images)], embeddings[len(images) :]

    def share(self, stage: str | int, side_px: int | None = None) -> float:
        """The share, in [0, 1], of a forward's floating-point operations that lies after `stage`, head included."""
        before, after = anatomy(self.name, self.options, side_px or self.side_px).flops(stage)
        head = 2 * self.width * self.dim
        return (after + head) / (before + after + head)

    def last_map_is_1x1(self, side_px: int | None = None) -> bool:
        """Whether the last feature map has a single position (a stride-32 network at 32 px).

        Mixing it, or any last map under a linear pooling (`mixes_like_embeddings`), equals mixing the embeddings
        before they are normalised.
        """
        return anatomy(self.name, self.options, side_px or self.side_px).positions <= 1

    def mixes_like_embeddings(self, side_px: int | None = None) -> bool:
        """Whether everything after the last feature map is linear up to the normalisation: pooling and head."""
        return self.pooling in ("avg", "token") or self.last_map_is_1x1(side_px)

    @property
    def _anatomy(self) -> Anatomy:
        return anatomy(self.name, self.options, self.side_px)

    def _require_last(self, stage: str | int) -> None:
        body = self._anatomy
        if body.resolve(stage) != body.last:
            raise ModelError(
                f"{self.name} can be left and entered at its last feature map {body.last!r}, not at {stage!r}; "
                "at an earlier stage the rows run jointly (forward_joint)"
            )

    def _features(self, images: Tensor) -> Tensor:
        return self.backbone.forward_features(images.contiguous(memory_format=self._layout))

    def _embed(self, features: Tensor) -> Tensor:
        embeddings = self.head(self._pool(features))
        if embeddings.dtype != torch.float64:
            embeddings = embeddings.float()
        # The floor of the norm is far below any trained embedding; at zero it keeps the gradient finite.
        return F.normalize(embeddings, dim=1, eps=1e-6)

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
    """A network around an `Embedder`: everything of it, its state dict included, until a subclass says otherwise.

    So checkpoints are those of the network itself, and whoever has `wrapped` needs not know that it is.
    """

    def __init__(self, model: nn.Module):
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


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers in which rows see each other while their network trains."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def _drawn_from(generator: torch.Generator | int | None) -> Iterator[None]:
    """Let torch's own generator draw what `generator` would, and put it back; leave it alone for None."""
    if generator is None:
        yield
        return
    if isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator)  # torch.manual_seed would seed the GPUs' generators as well
        yield


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """Convolutions' weights in a memory layout; Module.to would refuse the five-dimensional ones of some networks."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
