"""Embedding networks: any timm backbone, our own pooling and linear head, unit vectors out.

This file is the only one that knows timm. Backbones differ in what their features look like (channels first or
last, tokens with or without class tokens), in where they can be entered, and in whether their input size is fixed.
All of that is found out once, by forwards without weights on torch's meta device (`Anatomy`), so that a wrong
name, option or stage is refused in words before anything is downloaded or trained, and a training step does
nothing but run the network.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import registry
from harness.errors import UserError
from harness.training import checkpoint, weights

POOLINGS = ("avg", "max", "avg+max", "token")
NORMS = ("train", "frozen")
OURS = ("num_classes", "in_chans", "pretrained", "features_only", "checkpoint_path", "pretrained_cfg")
UNNAMED_END = "forward_features"  # the last stage of a backbone in which no module puts out the last feature map


class ModelError(UserError):
    """A backbone, option, stage or weights file that does not exist or does not fit; the message says what does."""


class Unavailable(ModelError):
    """Weights that are not on this machine and cannot be fetched now. Another attempt or machine may have them."""


class _NotMixable(Exception):
    """Why the output of a module cannot be given more rows."""


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"backbones come from timm, which cannot be imported ({error}): pip install timm") from error
    return timm


def names(pattern: str = "*") -> tuple[str, ...]:
    """timm's backbones whose name matches the shell pattern, such as "resnet*", in alphabetical order."""
    return tuple(_timm().list_models(pattern))


def stages(backbone: str, options: Mapping[str, Any] | None = None, side_px: int | None = None) -> tuple[str, ...]:
    """The stages of a backbone at which rows can be mixed, first to last; the last is its last feature map.

    Each is confirmed by a probe. Other modules can be named too, where `problems` finds nothing against them.
    Raises ModelError for a backbone, option or size that timm does not take.
    """
    return anatomy(backbone, options, side_px).stages()


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


def fetch(
    backbone: str,
    pretrained: bool | str | Path = True,
    options: Mapping[str, Any] | None = None,
    side_px: int | None = None,
) -> Path | None:
    """The weights' file of this choice of network, fetched now if it is not here yet; None for initial weights.

    Raises Unavailable where published weights are not on this machine and cannot be fetched.
    """
    return _weights_file(anatomy(backbone, options, side_px), pretrained)


def open_weights(
    backbone: str, file: Path, published: bool, options: Mapping[str, Any] | None = None, side_px: int | None = None
) -> str:
    """Fill a backbone with a file of weights, as a trial will; what was unwrapped or left out, "" for nothing.

    Raises ModelError with what the file is, or in what it differs from the backbone.
    """
    return _build(anatomy(backbone, options, side_px), file, published=published)[1]


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
        file = _weights_file(body, pretrained)
        self.weights = body.tag if pretrained is True else file and file.name
        with _drawn_from(generator):
            self.backbone, said = _build(body, file, published=pretrained is True)
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
            with _more_rows(self.backbone, stage, len(images), mix):
                features = self._features(images)
        except _NotMixable as error:
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
    def _anatomy(self) -> "Anatomy":
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


_ANATOMIES: dict[tuple, "Anatomy"] = {}


def anatomy(backbone: str, options: Mapping[str, Any] | None = None, side_px: int | None = None) -> "Anatomy":
    """The anatomy of a backbone with these options at this size; found out once in a process."""
    key = (backbone, repr(sorted((options or {}).items())), side_px)
    if key not in _ANATOMIES:
        _ANATOMIES[key] = Anatomy(backbone, options or {}, side_px)
    return _ANATOMIES[key]


class Anatomy:
    """What forwards without weights (on torch's meta device) show of a backbone.

    `axes` are the axes of positions in its features (n, …), `prefix` the tokens before the patches, `positions` the
    number of positions or patches at `side_px`, `last` the name of the stage that is the last feature map.
    """

    ROWS, MORE = 3, 2  # clean and added rows of a probe: 3 + 2 rows are not mistaken for another dimension

    def __init__(self, backbone: str, options: Mapping[str, Any], side_px: int | None):
        self.backbone = backbone
        self.network, self.options = _build_without_weights(backbone, options, side_px)
        self.config: dict[str, Any] = self.network.pretrained_cfg
        data = _timm().data.resolve_data_config({}, model=self.network)
        self.mean, self.std, self.interpolation = tuple(data["mean"]), tuple(data["std"]), data["interpolation"]
        self.input_px: int = data["input_size"][-1]
        self.side_px = side_px or self.input_px
        tag = self.config.get("tag")
        self.tag = f"{self.config['architecture']}.{tag}" if tag else self.config["architecture"]
        self._modules = dict(self.network.named_modules())
        self._refusals: dict[str, str | None] = {}
        self._flops: dict[str, tuple[int, int]] = {}
        self._probe()

    def _probe(self) -> None:
        """One forward that looks at everything: what comes out last, and which module puts it out."""
        ran: dict[str, Any] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
                ran.setdefault(name, output)

            return hook

        handles = [module.register_forward_hook(note(name)) for name, module in self._modules.items() if name]
        try:
            features = self._forward()
        finally:
            for handle in handles:
                handle.remove()
        self._read_layout(features)
        described = [name for name in _described_stages(self.network) if name in ran]
        self._ends = {name for name, output in ran.items() if output is features}
        self.last = min(self._ends or {UNNAMED_END}, key=lambda name: (name not in described, name.count("."), name))
        order = {name: place for place, name in enumerate(ran)}
        self._candidates = sorted((n for n in dict.fromkeys(described) if n not in self._ends), key=order.__getitem__)

    def _forward(self, rows: int = ROWS) -> Tensor:
        try:
            return self._features(rows)
        except Exception as error:  # whatever a backbone raises, its images are what it cannot take
            raise ModelError(
                f"{self.backbone} cannot take images of {self.side_px} px ({_first_line(error)}); "
                f"its own size is {self.input_px} px"
            ) from error

    def _features(self, rows: int) -> Tensor:
        with torch.no_grad():
            return self.network.forward_features(torch.empty(rows, 3, self.side_px, self.side_px, device="meta"))

    def _read_layout(self, features: Any) -> None:
        self.width: int = self.network.num_features
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        named_last = getattr(self.network, "output_fmt", "") == "NHWC"
        channels_last = len(shape) == 3 or (len(shape) == 4 and (named_last or shape[1] != self.width))
        if len(shape) not in (2, 3, 4) or shape[0] != self.ROWS or shape[-1 if channels_last else 1] != self.width:
            raise ModelError(
                f"{self.backbone} ends in {_described(features)}, not in one feature map "
                f"with {self.width} channels; it cannot be pooled"
            )
        self.axes: tuple[int, ...] = {2: (), 3: (1,), 4: (1, 2) if channels_last else (2, 3)}[len(shape)]
        self.class_tokens = self.prefix = 0
        if len(shape) == 3:
            token = getattr(self.network, "cls_token", None)
            tokens = 0 if token is None else token.shape[-2]
            self.class_tokens = int(getattr(self.network, "has_class_token", tokens > 0))
            self.prefix = getattr(self.network, "num_prefix_tokens", tokens)
        self.positions = math.prod(shape[axis] for axis in self.axes) - self.prefix

    def stages(self) -> tuple[str, ...]:
        """The described stages that a probe confirms, and the last feature map."""
        return (*(name for name in self._candidates if self._refusal(name) is None), self.last)

    def resolve(self, stage: str | int) -> str:
        """The name of a stage given by name, by module name, or by its index in `stages()`; ModelError if none is."""
        if str(stage).lstrip("-").isdigit():
            known = self.stages()
            if not -len(known) <= int(stage) < len(known):
                raise ModelError(f"{self.backbone} has no stage {stage}; {self._listed()}")
            return known[int(stage)]
        if stage == self.last or stage in self._ends:
            return self.last
        if stage not in self._modules:
            raise ModelError(f"{self.backbone} has no stage {stage!r}; {self._listed()}")
        if reason := self._refusal(stage):
            raise ModelError(self.refused(stage, reason))
        return stage

    def flops(self, stage: str | int) -> tuple[int, int]:
        """Floating-point operations of the backbone on one image, up to the stage and after it."""
        name = self.resolve(stage)
        if name not in self._flops:
            with FlopCounterMode(display=False) as counter:
                before: list[int] = []
                module = self._modules.get(name, self.network)
                handle = module.register_forward_hook(lambda *_: before.append(counter.get_total_flops()))
                try:
                    self._forward(rows=1)
                finally:
                    handle.remove()
            total = counter.get_total_flops()
            up_to = total if name == self.last else before[0]
            self._flops[name] = (up_to, total - up_to)
        return self._flops[name]

    def _refusal(self, stage: str) -> str | None:
        """Why rows cannot be added at a module; None where a probe with added rows comes out whole."""
        if stage not in self._refusals:
            self._refusals[stage] = self._try(stage)
        return self._refusals[stage]

    def _try(self, stage: str) -> str | None:
        try:
            with _more_rows(self.network, stage, self.ROWS, lambda maps: maps[: self.MORE]):
                features = self._features(self.ROWS)
        except _NotMixable as error:
            return str(error)
        except Exception:  # whatever the layers after the stage raise, it is the added rows that they do not take
            return "the layers after it take no added rows"
        if len(features) != self.ROWS + self.MORE:
            return "the added rows do not come out at the end"
        return None

    def refused(self, stage: str, reason: str) -> str:
        """The sentence that refuses a stage, with those that can be had."""
        return f"rows cannot be mixed at {stage!r} of {self.backbone}: {reason}; {self._listed()}"

    def _listed(self) -> str:
        return f"its stages are {', '.join(self.stages())}"


def _build_without_weights(
    backbone: str, options: Mapping[str, Any], side_px: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network on the meta device, and the options with its image size where it fixes one."""
    _check_name(backbone)
    if taken := [name for name in OURS if name in options]:
        raise ModelError(f"the options of {backbone} cannot set {', '.join(taken)}: the embedder does")

    options = dict(options)
    try:
        network = _on_meta(backbone, options)
        if side_px and "img_size" not in options and _takes_image_size(network):
            options["img_size"] = side_px
            network = _on_meta(backbone, options)
    except Exception as error:  # timm reports wrong options in as many ways as it has authors
        raise ModelError(_build_failure(backbone, options, error)) from error
    return network, options


def _on_meta(backbone: str, options: Mapping[str, Any], num_classes: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _timm().create_model(backbone, pretrained=False, num_classes=num_classes, **options).eval()


def _check_name(backbone: str) -> None:
    timm = _timm()
    if ":" in backbone or "/" in backbone:
        raise ModelError(
            f"{backbone!r} is not a name of timm's: networks are named as `metrix-bench list backbones` does, and "
            "weights from elsewhere are given as a file (pretrained: FILE)"
        )
    architecture, _, tag = backbone.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(registry.unknown("backbone", backbone, timm.list_models()))
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ModelError(registry.unknown(f"weights of {architecture}", tag, tags))


def _takes_image_size(network: nn.Module) -> bool:
    return any("img_size" in inspect.signature(kind.__init__).parameters for kind in type(network).__mro__)


def _build_failure(backbone: str, options: Mapping[str, Any], error: Exception) -> str:
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unexpected:
        return f"{backbone} takes no option {unexpected[1]!r}"
    return f"{backbone} cannot be built with the options {dict(options)} ({_first_line(error)})"


def _described_stages(network: nn.Module) -> list[str]:
    """The module names of timm's own description of the stages; not all of them exist, which a probe shows."""
    info = getattr(network, "feature_info", None) or []
    return [entry["module"] for entry in getattr(info, "info", info) if entry.get("module")]


@contextmanager
def _more_rows(network: nn.Module, stage: str, rows: int, mix: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """For one forward, the output h (n rows) of module `stage` becomes cat([h, mix(h)]) for all that follow.

    The hook goes when the forward is over: layers run again in the backward pass (gradient checkpointing) would
    need it, but are refused before, and torch itself raises when a layer that runs again gives other rows.
    """
    ran = 0

    def add(module: nn.Module, inputs: tuple, output: Any) -> Tensor:
        nonlocal ran
        ran += 1
        if ran > 1:
            raise _NotMixable("it runs more than once in a forward")
        if not isinstance(output, Tensor) or output.shape[:1] != (rows,):
            raise _NotMixable(f"it gives {_described(output)}, not one tensor with a row for each of {rows} images")
        mixed = mix(output).to(output.dtype)
        if output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last):
            mixed = mixed.contiguous(memory_format=torch.channels_last)  # else all layers that follow change layout
        return torch.cat([output, mixed])

    handle = network.get_submodule(stage).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if not ran:
        raise _NotMixable("it is not called in a forward")


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def _build(body: Anatomy, file: Path | None, *, published: bool) -> tuple[nn.Module, str]:
    """The backbone itself, and what was unwrapped of a user's file.

    Such a file must fill the backbone exactly; published weights are read as timm reads them.
    """
    timm = _timm()
    if file is None:
        return timm.create_model(body.backbone, pretrained=False, num_classes=0, **body.options), ""
    chosen, overlay = weights.Chosen({}), {"file": str(file), "custom_load": False}
    expected = {name: tensor.shape for name, tensor in body.network.state_dict().items()}
    try:
        if not published:
            chosen = weights.choose(weights.read(file), expected, _classifier(body, expected))
            overlay = {"state_dict": dict(chosen.tensors), "num_classes": 0, "label_offset": 0}
        network = timm.create_model(
            body.backbone, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **body.options
        )
    except weights.Misfit as error:
        raise ModelError(f"the weights file {file} {error}") from error
    except Exception as error:  # the file's reader and timm's conversion raise all sorts
        why = weights.misfit(chosen.tensors, expected) if chosen.tensors else _of_published(file, error)
        raise ModelError(f"the weights file {file} does not fit {body.backbone}: {why}") from error
    network.pretrained_cfg.pop("state_dict", None)
    return network, chosen.said


def _of_published(file: Path, error: Exception) -> str:
    """Why a file that timm fetched cannot be read: most often it was cut off."""
    try:
        weights.read(file)
    except weights.Misfit as problem:
        return f"it {problem}; delete it, and it is fetched again"
    return _first_line(error)


def _classifier(body: Anatomy, expected: Mapping[str, Any]) -> set[str]:
    """The names of a classifier's tensors, which are left out of a file: the embedder has its own head."""
    return set(_on_meta(body.backbone, body.options, num_classes=1000).state_dict()) - set(expected)


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """Convolutions' weights in a memory layout; Module.to would refuse the five-dimensional ones of some networks."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _weights_file(body: Anatomy, pretrained: bool | str | Path) -> Path | None:
    """The file to load: the user's, the published one (fetched once, then from the cache of timm's hub), or none."""
    if pretrained is not True:
        return Path(pretrained) if pretrained is not False else None
    try:
        return _published_file(body.config)
    except Exception as error:  # network, proxy, hub and disk each raise their own
        raise Unavailable(
            f"the published weights of {body.tag} are not on this machine and cannot be fetched "
            f"({_first_line(error)}); go online, or set pretrained to false or to a file of weights"
        ) from error


def _published_file(config: Mapping[str, Any]) -> Path:
    hub_id = config.get("hf_hub_id")
    if not hub_id:
        return Path(_timm().models._hub.download_cached_file(config["url"]))
    import huggingface_hub as hub

    repository, _, revision = hub_id.partition("@")
    revision = revision or None
    named = config.get("hf_hub_filename")
    files = [named] if named else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = hub.try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    # Asking first fails at once where the hub cannot be reached; its download would retry for most of a minute.
    found = [file for file in files if hub.file_exists(repository, file, revision=revision)]
    if not found:
        raise ModelError(f"{repository} holds neither of {', '.join(files)}")
    return Path(hub.hf_hub_download(repository, found[0], revision=revision))
