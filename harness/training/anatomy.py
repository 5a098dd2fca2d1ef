"""The anatomy of a backbone: the shape of its features, its stages, and their costs.

Backbones differ in the layout of their features (channels first or last, tokens with or without class tokens), in
their stages, and in whether their input size is fixed. All of this is determined once per process, by forward
passes without weights on torch's meta device.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.training import backbones
from harness.training.backbones import ModelError

UNNAMED_END = "forward_features"  # the last stage of a backbone if no module returns the last feature map


class NotMixable(Exception):
    """Raised with the reason why rows cannot be added to the output of a module."""


def stages(backbone: str, options: Mapping[str, Any] | None = None, side_px: int | None = None) -> tuple[str, ...]:
    """Return the stages of a backbone at which rows can be mixed, first to last; the last is its last feature map.

    Each is confirmed by a probe. Other modules work too if `embedder.problems` does not reject them.
    Raises ModelError for a backbone, option or size that timm does not accept.
    """
    return anatomy(backbone, options, side_px).stages()


@dataclass(frozen=True)
class _Options:
    """Options for timm, compared by their text because lists among them cannot be hashed."""

    text: str
    values: Mapping[str, Any] = field(compare=False)


def anatomy(backbone: str, options: Mapping[str, Any] | None = None, side_px: int | None = None) -> "Anatomy":
    """Return the anatomy of a backbone with these options at this size, determined once per process."""
    options = options or {}
    return _anatomy(backbone, _Options(repr(sorted(options.items())), options), side_px)


@lru_cache(maxsize=64)
def _anatomy(backbone: str, options: _Options, side_px: int | None) -> "Anatomy":
    return Anatomy(backbone, options.values, side_px)


class Anatomy:
    """The structure of a backbone.

    `axes` are the axes of positions in its features (n, …), `prefix` is the number of tokens before the patches,
    `positions` the number of positions or patches at `side_px`, `last` the stage that is the last feature map.
    """

    ROWS, MORE = 3, 2  # clean and added rows of a probe: 3 and 5 cannot be mistaken for another dimension

    def __init__(self, backbone: str, options: Mapping[str, Any], side_px: int | None):
        self.backbone = backbone
        self.network, self.options = backbones.without_weights(backbone, options, side_px)
        self.config = self.network.pretrained_cfg
        data = backbones.input_config(self.network)
        self.mean, self.std, self.interpolation = tuple(data["mean"]), tuple(data["std"]), data["interpolation"]
        self.input_px: int = data["input_size"][-1]
        self.side_px = side_px or self.input_px
        tag = self.config.get("tag")
        self.tag = f"{self.config['architecture']}.{tag}" if tag else self.config["architecture"]
        self._modules = dict(self.network.named_modules())
        self._reasons: dict[str, str | None] = {}
        self._flops: dict[str, tuple[int, int]] = {}
        self._probe()

    def _probe(self) -> None:
        """Find the last feature map and the modules that return it, with one forward pass."""
        ran: dict[str, Any] = {}

        def record(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
                ran.setdefault(name, output)

            return hook

        handles = [module.register_forward_hook(record(name)) for name, module in self._modules.items() if name]
        try:
            features = self._forward()
        finally:
            for handle in handles:
                handle.remove()
        self._read_layout(features)
        described = [name for name in _described_stages(self.network) if name in ran]
        self._ends = {name for name, output in ran.items() if output is features}
        self.last = min(self._ends or {UNNAMED_END}, key=lambda name: (name not in described, name.count("."), name))
        order = {name: number for number, name in enumerate(ran)}
        self._candidates = sorted((n for n in dict.fromkeys(described) if n not in self._ends), key=order.__getitem__)

    def _forward(self, rows: int = ROWS) -> Tensor:
        try:
            return self._features(rows)
        except Exception as error:  # whatever a backbone raises, the cause is the size of the images
            raise ModelError(
                f"{self.backbone} does not accept images of {self.side_px} px ({backbones.first_line(error)}); "
                f"its own size is {self.input_px} px"
            ) from error

    def _features(self, rows: int) -> Tensor:
        with torch.no_grad():
            return self.network.forward_features(torch.empty(rows, 3, self.side_px, self.side_px, device="meta"))

    def _read_layout(self, features: Any) -> None:
        self.width = self.network.num_features
        shape = tuple(features.shape if isinstance(features, Tensor) else ())
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
        """Return the stages that timm describes and a probe confirms, and the last feature map."""
        return (*(name for name in self._candidates if self._reason_against(name) is None), self.last)

    def resolve(self, stage: str | int) -> str:
        """Return the name of a stage, given by name, module or index in `stages()`; ModelError for an unknown one."""
        if str(stage).lstrip("-").isdigit():
            known = self.stages()
            if not -len(known) <= int(stage) < len(known):
                raise ModelError(f"{self.backbone} has no stage {stage}; {self._listed()}")
            return known[int(stage)]
        if stage == self.last or stage in self._ends:
            return self.last
        if stage not in self._modules:
            raise ModelError(f"{self.backbone} has no stage {stage!r}; {self._listed()}")
        if reason := self._reason_against(stage):
            raise ModelError(self.rejection(stage, reason))
        return stage

    def flops(self, stage: str | int) -> tuple[int, int]:
        """Return the floating-point operations of the backbone on one image, up to the stage and after it."""
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

    def _reason_against(self, stage: str) -> str | None:
        """Return why rows cannot be added at a module; None if a probe with added rows succeeds."""
        if stage not in self._reasons:
            self._reasons[stage] = self._probe_added_rows(stage)
        return self._reasons[stage]

    def _probe_added_rows(self, stage: str) -> str | None:
        try:
            with more_rows(self.network, stage, self.ROWS, lambda maps: maps[: self.MORE]):
                features = self._features(self.ROWS)
        except NotMixable as error:
            return str(error)
        except Exception:  # whatever the layers after the stage raise, the cause is the added rows
            return "the layers after it do not accept added rows"
        if len(features) != self.ROWS + self.MORE:
            return "the added rows do not reach the output"
        return None

    def rejection(self, stage: str, reason: str) -> str:
        """Return the message for a rejected stage, with the stages that exist."""
        return f"rows cannot be mixed at {stage!r} of {self.backbone}: {reason}; {self._listed()}"

    def _listed(self) -> str:
        return f"its stages are {', '.join(self.stages())}"


def _described_stages(network: nn.Module) -> list[str]:
    """Return the modules that timm describes as stages; a probe shows which of them exist."""
    info = getattr(network, "feature_info", None) or []
    return [entry["module"] for entry in getattr(info, "info", info) if entry.get("module")]


@contextmanager
def more_rows(network: nn.Module, stage: str, rows: int, mix: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output h (n rows) of module `stage` by cat([h, mix(h)]) during one forward pass.

    The hook is removed after the pass. Layers that run again in the backward pass (gradient checkpointing) would need
    it, but they are rejected before, and torch raises if a layer that runs again returns other rows.
    """
    ran = 0

    def add(module: nn.Module, inputs: tuple, output: Any) -> Tensor:
        nonlocal ran
        ran += 1
        if ran > 1:
            raise NotMixable("it runs more than once in a forward pass")
        if not isinstance(output, Tensor) or output.shape[:1] != (rows,):
            raise NotMixable(f"it returns {_described(output)}, not one tensor with a row for each of {rows} images")
        mixed = mix(output).to(output.dtype)
        if output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last):
            mixed = mixed.contiguous(memory_format=torch.channels_last)  # otherwise all later layers change layout
        return torch.cat([output, mixed])

    handle = network.get_submodule(stage).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if not ran:
        raise NotMixable("it is not called in a forward pass")


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
