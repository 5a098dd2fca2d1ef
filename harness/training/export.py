"""Export a trained embedder: files that need neither this program nor the run folder.

    model.safetensors   all weights, backbone and head
    model.json          what network they belong to, how images are prepared, scores, origin, the lines that load it
    model.onnx          images in, unit embeddings out; if torch's exporter and its packages can write it

Where timm's own pooling and classifier compute the same embeddings, the weights have the names of that network, and
one call of timm loads them. This is not assumed, but tried with the written file. Otherwise they have the names of
the embedder, `backbone.…` and `head.…`, and a few lines of torch put them together.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UserError
from harness.runs import files
from harness.runs.provenance import provenance
from harness.runs.record import write_json
from harness.training import backbones, checkpoint
from harness.training.anatomy import anatomy
from harness.training.backbones import first_line
from harness.training.embedder import Embedder
from harness.training.trained import Trained

FORMAT = "metrix-bench export 1"
TOLERANCE = 1e-5  # of a coordinate of a unit vector
POOLS = {"avg": ("avg", 1), "max": ("max", 1), "avg+max": ("avgmax", 2), "token": ("token", 1)}
# timm's name of each pooling, and the factor of its head: avgmax is half of the sum


@dataclass(frozen=True)
class Exported:
    """What was written: the files, the lines that load them, and why there is no ONNX file (None if there is one)."""

    files: tuple[Path, ...]
    usage: tuple[str, ...]
    without_onnx: str | None


def export(trained: Trained, folder: Path) -> Exported:
    """Write a trained embedder to a folder, replacing an earlier export there.

    Raises UserError if the folder cannot be made or written.
    """
    try:
        files.make_folder(folder)
    except OSError as error:
        raise UserError(f"cannot export to {folder}: {error.strerror}") from error
    network = copy.deepcopy(trained.network).cpu()
    side = trained.record.trial.images.side_px
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    path = folder / "model.safetensors"
    usage = _as_classifier(network, images, path) or _as_embedder(network, path)
    without_onnx = _onnx(network, images, folder / "model.onnx")
    about = {
        "format": FORMAT,
        "program": f"metrix-bench {provenance()['packages']['metrix-bench']}",
        "usage": list(usage),
        "prepare": [
            "import json, PIL.Image, timm, torch",
            'transform = timm.data.create_transform(**json.load(open("model.json"))["transform"])',
            'images = torch.stack([transform(PIL.Image.open(file).convert("RGB")) for file in files])',
        ],
        "transform": _transform(trained),
        "transform_note": _transform_note(trained),
        "network": {
            "timm": network.name,
            "options": anatomy(network.name, network.options, network.side_px).options,
            "pooling": network.pooling,
            "dim": network.dim,
            "hidden": network.hidden,
            "normalised": True,
        },
        "onnx": None if without_onnx else {"file": "model.onnx", "input": "images", "output": "embeddings"},
        **_origin(trained, path),
    }
    write_json(folder / "model.json", about)
    written = (path, folder / "model.json", *(() if without_onnx else (folder / "model.onnx",)))
    return Exported(written, usage, without_onnx)


def _as_classifier(network: Embedder, images: Tensor, path: Path) -> tuple[str, ...] | None:
    """Write the embedder as a timm network whose classifier is the head; return None if none computes the same."""
    expected = network(images)
    for options, tensors in _classifiers(network):
        checkpoint.save_tensors(path, tensors, {"format": "pt"})
        try:
            found = backbones.from_file(network.name, options, network.dim, path)(images)
        except Exception:  # timm raises many kinds of errors for options that a network does not know
            continue
        if found.shape == expected.shape and (F.normalize(found) - expected).abs().max() <= TOLERANCE:
            words = {"num_classes": network.dim, **options, "checkpoint_path": path.name}
            return (
                "import timm, torch",
                f"model = {_call(network.name, words)}.eval().requires_grad_(False)",
                "embeddings = torch.nn.functional.normalize(model(images))",
            )
    return None


def _classifiers(network: Embedder) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Yield timm's options and tensors of networks with a linear classifier that may compute the embeddings."""
    if not isinstance(network.head, nn.Linear):
        return
    options = anatomy(network.name, network.options, network.side_px).options
    body, (pool, factor) = network.backbone.state_dict(), POOLS[network.pooling]
    head = {(network.dim, network.width): factor * network.head.weight, (network.dim,): network.head.bias}
    for more in ({"global_pool": pool}, {"global_pool": pool, "fc_norm": False}):
        try:
            whole = backbones.on_meta(network.name, {**options, **more}, network.dim).state_dict()
        except Exception:  # an option that this network does not know
            continue
        added = {name: tuple(tensor.shape) for name, tensor in whole.items() if name not in body}
        if len(added) == 2 and set(added.values()) == set(head):
            kept = {
                name: tensor for name, tensor in body.items() if name in whole
            }  # others are of timm's own pooling
            yield {**options, **more}, {**kept, **{name: head[shape] for name, shape in added.items()}}


def _as_embedder(network: Embedder, path: Path) -> tuple[str, ...]:
    """Write backbone and head under the names of the embedder; return the lines that put them together."""
    checkpoint.save_tensors(path, network.state_dict(), {"format": "pt"})
    body = anatomy(network.name, network.options, network.side_px)
    return (
        "import timm, torch, safetensors.torch",
        f'tensors = safetensors.torch.load_file("{path.name}")',
        f"backbone = {_call(network.name, {'num_classes': 0, **body.options})}.eval().requires_grad_(False)",
        'own = {name[9:]: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}',
        "backbone.load_state_dict(own)",
        "features = backbone.forward_features(images)",
        f"rows = {_pooling(network.pooling, body.axes, body.prefix)}",
        *_head(network.head),
        "embeddings = torch.nn.functional.normalize(rows)",
    )


def _call(name: str, words: Mapping[str, Any]) -> str:
    """Return the call of timm that makes a network."""
    given = "".join(f", {key}={value!r}" for key, value in words.items())
    return f"timm.create_model({name!r}{given})"


def _pooling(pooling: str, axes: Sequence[int], prefix: int) -> str:
    """Return the expression for pooled features, as `Embedder` pools them."""
    if pooling == "token":
        return "features[:, 0]"
    patches = f"features[:, {prefix}:]" if prefix else "features"
    mean, largest = f"{patches}.mean({tuple(axes)})", f"{patches}.amax({tuple(axes)})"
    return {"avg": mean, "max": largest, "avg+max": f"{mean} + {largest}"}[pooling] if axes else "features"


def _head(head: nn.Module) -> Iterator[str]:
    """Yield a line for each layer of a head."""
    for name, layer in head.named_modules(prefix="head"):
        if isinstance(layer, nn.Linear):
            yield f'rows = torch.nn.functional.linear(rows, tensors["{name}.weight"], tensors["{name}.bias"])'
        elif isinstance(layer, nn.ReLU):
            yield "rows = rows.relu()"
        elif not isinstance(layer, nn.Sequential):
            raise NotImplementedError(f"no line for {layer} in a head")


def _transform(trained: Trained) -> dict[str, Any]:
    """Return the arguments of timm's transform that prepares upright RGB images as the trial did."""
    images, own = trained.record.trial.images, trained.augmentation
    share = own.side_px / own.resized_px
    if math.floor(own.side_px / share) != own.resized_px:  # timm rounds down
        share = math.nextafter(share, 0)
    return {
        "input_size": [3, own.side_px, own.side_px],
        "crop_pct": share,
        "interpolation": "bilinear" if images.path == "cache" else own.interpolation,
        "mean": list(own.mean),
        "std": list(own.std),
    }


def _transform_note(trained: Trained) -> str:
    images, own = trained.record.trial.images, trained.augmentation
    same = "the same pixels as in the benchmark, for upright RGB images"
    if images.path == "classical":
        return same
    if images.stored_px == own.resized_px:
        return f"{same} of which one side is at most four times the other"
    return (
        f"nearly the pixels of the benchmark, which resizes images twice: to {images.stored_px} px (bilinear), "
        f"then to {own.resized_px} px ({own.interpolation})"
    )


def _origin(trained: Trained, path: Path) -> dict[str, Any]:
    """Return where the weights come from: trial, scores, digests, licence."""
    record, trial = trained.record, trained.record.trial
    source, images = record.weights, f"on images of {trial.dataset.name}"
    return {
        "trial": {
            "id": record.id,
            "arm": record.arm,
            "seed": trial.seed,
            "dataset": trial.dataset.name,
            "protocol": record.protocol,
            "epoch": record.selected_epoch,
            "finished": record.finished,
        },
        "scores": {"test": record.test, "validation": record.validation},
        "weights": {
            "sha256": checkpoint.digest(path),
            "tested": record.provenance.get("tested_weights"),
            "initial": source,
            "packages": record.provenance.get("packages", {}),
        },
        "licence": (
            f"trained {images} from {source}: the licence of those weights applies to these, too"
            if source
            else f"trained {images} from random initial weights: see the licence of the images"
        ),
    }


def _onnx(network: Embedder, images: Tensor, path: Path) -> str | None:
    """Write a network as ONNX, for any number of images; return the reason if that is not possible."""
    path.unlink(missing_ok=True)  # an earlier one would be of other weights
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own code
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # as no file was named
            files.put(path, lambda aside: program.save(aside, external_data=False))
    except ImportError as error:
        return f"torch's exporter needs {error.name}: pip install onnx onnxscript"
    except Exception as error:  # the exporter raises many kinds of errors
        return f"torch's exporter refuses this network ({first_line(error)})"
    return None
