"""Checkpoints: tensors and the plain data around them in one safetensors file, never a pickle.

A file is written aside, flushed to the disk and renamed into place, so at every moment there is the previous
checkpoint or the new one, whole. Every tensor keeps a readable name ("optimizer/state/0/exp_avg"); how the
tensors nest in dicts and lists, and the numbers between them, is JSON in the file's metadata. This file is the
only one that knows safetensors.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import UserError
from harness.runs import files
from harness.runs.errors import StorageError

FORMAT = "metrix-bench checkpoint 1"


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message names the file."""


def save(path: Path | str, sections: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write `sections` (a state dict each, nested as deep as an optimiser's) and `meta` to `path`, atomically.

    Sections may hold tensors of any shape and device, numbers, text, None, and lists, tuples and dicts of them.
    They come back from `load` with the same types, keys and bits, tensors on the CPU in the layout they had
    (contiguous or channels last). Tensors that are one (tied weights) are stored once. Raises CheckpointError for
    anything else, and when the disk is not writable or stays full for longer than patience lasts
    (`patience.retry`): a previous checkpoint is then still there.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    stored: dict[tuple, str] = {}
    content = json.dumps(
        {"sections": _encode(sections, "", tensors, stored), "meta": _encode(meta, "meta", tensors, stored)}
    )
    metadata = {"format": FORMAT, "content": content, "crc32": _checksum(content, tensors)}
    try:
        files.put(path, lambda aside: save_file(tensors, aside, metadata))
    except (OSError, SafetensorError, StorageError) as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {error}; a previous one is intact") from error


def load(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The (sections, meta) that `save` wrote to `path`, tensors on the CPU, each in memory of its own.

    Raises CheckpointError, naming the file, when it is missing, truncated, altered in any byte, or no checkpoint.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Without the copy all tensors are views of one map of the file, which the optimiser then writes to.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"the checkpoint {path} is truncated or corrupt: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version ({FORMAT!r})")
    if metadata.get("crc32") != _checksum(metadata.get("content", ""), tensors):
        raise CheckpointError(f"the checkpoint {path} is corrupt: its checksum does not match its content")
    content = json.loads(metadata["content"])
    return _decode(content["sections"], tensors), _decode(content["meta"], tensors)


def tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of any safetensors file, on the CPU. Raises SafetensorError for what is none."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def remove(folder: Path | str) -> None:
    """Delete the checkpoints in `folder`, and the folder where nothing else is in it; no error if it is not there."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in (*folder.glob("*.safetensors"), *folder.glob(".*.part")):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def digest(path: Path | str) -> str:
    """The sha256 of the file's bytes, in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """The sha256 over names, shapes, types and bytes of a state dict of tensors, whatever file holds it."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha256.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha256.update(_bytes(tensor.detach().cpu()))
    return sha256.hexdigest()


def _encode(value: Any, place: str, tensors: dict[str, Tensor], stored: dict[tuple, str]) -> Any:
    """`value` as JSON that keeps types and key types; its tensors go to `tensors` under their place in it."""
    if isinstance(value, Tensor):
        kind = "channels_last" if _is_channels_last(value) else "tensor"
        return {kind: _store(value, place, tensors, stored)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        pairs = [[_key(k, place), _encode(v, f"{place}/{k}".lstrip("/"), tensors, stored)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(v, f"{place}/{i}", tensors, stored) for i, v in enumerate(value)]}
    raise CheckpointError(
        f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, text, None, "
        "and lists, tuples and dicts of them"
    )


def _key(key: Any, place: str) -> Any:
    if key is None or isinstance(key, bool | int | float | str):
        return key
    raise CheckpointError(f"{place} has the key {key!r}; a checkpoint's keys are numbers or text")


def _store(tensor: Tensor, place: str, tensors: dict[str, Tensor], stored: dict[tuple, str]) -> str:
    """Put the tensor among `tensors`, once for all the names of one tensor; return the name it has there."""
    tensor = tensor.detach()
    same = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
    if tensor.numel() and same in stored:
        return stored[same]
    name = place
    while name in tensors:  # {"a/b": …} beside {"a": {"b": …}}
        name += "'"
    tensors[name] = tensor.cpu().contiguous()
    if tensors[name].data_ptr() == tensor.data_ptr():
        # The format refuses views of one memory (slices, transposes, tensors read from one map).
        tensors[name] = tensors[name].clone()
    stored[same] = name
    return name


def _is_channels_last(tensor: Tensor) -> bool:
    """The format stores one layout; another must come back, or vectorised optimiser steps round differently."""
    return (
        tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "channels_last":
        tensors[inner] = tensors[inner].contiguous(memory_format=torch.channels_last)
        return tensors[inner]
    if kind == "dict":
        return {key: _decode(v, tensors) for key, v in inner}
    items = [_decode(v, tensors) for v in inner]
    return items if kind == "list" else tuple(items)


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> str:
    """The format checks sizes, not bits: this finds a flipped one."""
    crc = zlib.crc32(content.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(_bytes(tensors[name]), crc)
    return f"{crc:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
