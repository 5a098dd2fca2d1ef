"""Backbones by name: the networks of timm, without weights or with them, and published files of weights.

This is the only file that imports timm and huggingface_hub.
"""

import inspect
import io
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness import registry
from harness.errors import UserError

Converter = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # from names of other authors to those of a network

RESERVED = ("num_classes", "in_chans", "pretrained", "features_only", "checkpoint_path", "pretrained_cfg")


class ModelError(UserError):
    """Raised for a backbone, option, stage or weights file that does not exist or fit."""


class Unavailable(ModelError):
    """Raised for weights that cannot be fetched now; a retry or another machine may succeed."""


class Backbone(nn.Module):
    """What each network of timm has. Only type checkers use this class: no network is an instance of it."""

    pretrained_cfg: dict[str, Any]
    num_features: int

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map of images (n, 3, side, side), before timm's pooling and head."""
        raise NotImplementedError


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"backbones come from timm, which cannot be imported ({error}): pip install timm") from error
    return timm


def names(pattern: str = "*") -> tuple[str, ...]:
    """Return the timm backbones whose names match the shell pattern, such as "resnet*", in alphabetical order."""
    return tuple(_timm().list_models(pattern))


def without_weights(
    backbone: str, options: Mapping[str, Any], side_px: int | None
) -> tuple[Backbone, dict[str, Any]]:
    """Return the network on the meta device, and the options with the image size if the network has a fixed one."""
    _check_name(backbone)
    if reserved := [name for name in RESERVED if name in options]:
        raise ModelError(f"the options of {backbone} cannot set {', '.join(reserved)}: the embedder sets it")
    options = dict(options)
    try:
        network = on_meta(backbone, options)
        if side_px and "img_size" not in options and _takes_image_size(network):
            options["img_size"] = side_px
            network = on_meta(backbone, options)
    except Exception as error:  # timm raises many kinds of errors for wrong options
        raise ModelError(_build_failure(backbone, options, error)) from error
    return network, options


def on_meta(backbone: str, options: Mapping[str, Any], num_classes: int = 0, pretrained: bool = False) -> Backbone:
    """Build a network without weights on the meta device, in evaluation mode. timm's errors are passed on.

    With `pretrained`, timm calls its loader too.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _timm().create_model(backbone, pretrained=pretrained, num_classes=num_classes, **options).eval()


def conversion(backbone: str, options: Mapping[str, Any], network: nn.Module) -> tuple[frozenset[str], Converter]:
    """Return the names of the classifier that `network` lacks, and timm's conversion of other names to its own.

    The conversion is known only to the loader that timm calls when it builds a network with weights. For the time of
    one call the loader is replaced by one that keeps the conversion, for networks on the meta device only.
    """
    builder, kept = _timm().models._builder, []
    load = builder.load_pretrained

    def keep(model: nn.Module, *args: Any, filter_fn: Any = None, **more: Any) -> None:
        if not next(model.parameters()).is_meta:
            load(model, *args, filter_fn=filter_fn, **more)
        elif filter_fn is not None:
            kept.append(filter_fn)

    builder.load_pretrained = keep
    try:
        classifying = on_meta(backbone, options, num_classes=1000, pretrained=True)
    finally:
        builder.load_pretrained = load

    def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        converted = dict(tensors)
        for convert in kept:
            arguments = (converted, network)[: len(inspect.signature(convert).parameters)]
            with redirect_stdout(io.StringIO()):  # some conversions print
                converted = convert(*arguments)
        return converted

    return frozenset(classifying.state_dict()) - set(network.state_dict()), convert


def _check_name(backbone: str) -> None:
    timm = _timm()
    if ":" in backbone or "/" in backbone:
        raise ModelError(
            f"{backbone!r} is not a timm name: see `metrix-bench list backbones`, and give other weights as a file "
            "(pretrained: FILE)"
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
        return f"{backbone} has no option {unexpected[1]!r}"
    return f"{backbone} cannot be built with the options {dict(options)} ({first_line(error)})"


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def published_file(config: Mapping[str, Any]) -> Path:
    """Return the file of published weights, downloaded if it is not in the cache of the hub."""
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
    # This request fails at once if the hub is unreachable; a download would retry for most of a minute.
    existing = [file for file in files if hub.file_exists(repository, file, revision=revision)]
    if not existing:
        raise ModelError(f"{repository} contains none of {', '.join(files)}")
    return Path(hub.hf_hub_download(repository, existing[0], revision=revision))


def input_config(network: nn.Module) -> dict[str, Any]:
    """Return timm's preparation of images for a network: "mean", "std", "interpolation", "input_size"."""
    return _timm().data.resolve_data_config({}, model=network)


def create(backbone: str, options: Mapping[str, Any], overlay: Mapping[str, Any] | None = None) -> Backbone:
    """Build a network without a classifier, with initial weights or those of an `overlay` of its configuration.

    Raises whatever timm and the reader of the file raise.
    """
    if overlay is None:
        return _timm().create_model(backbone, pretrained=False, num_classes=0, **options)
    return _timm().create_model(
        backbone, pretrained=True, pretrained_cfg_overlay=dict(overlay), num_classes=0, **options
    )


def from_file(backbone: str, options: Mapping[str, Any], num_classes: int, file: Path) -> nn.Module:
    """Build a network with timm's own pooling and classifier from a file of all its weights, in evaluation mode.

    timm's errors are passed on.
    """
    with torch.random.fork_rng(devices=[]):
        return _timm().create_model(backbone, num_classes=num_classes, checkpoint_path=str(file), **options).eval()
