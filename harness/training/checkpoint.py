"""Checkpoints: tensors and plain data in one safetensors file, never a pickle.

A file is written under a temporary name, flushed to the disk and renamed, so that either the previous or the new
checkpoint exists at any time, complete. Every tensor has a readable name ("optimizer/state/0/exp_avg"). The nesting
of the tensors in dicts and lists, and the numbers between them, are JSON in the file's metadata. This is the only
file that imports safetensors.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import UserError
from harness.runs import files
from harness.runs.errors import StorageError

FORMAT = "metrix-bench checkpoint 1"


class CheckpointError(UserError):
    """Raised for a checkpoint that cannot be written or read; the message names the file."""


def save(path: Path | str, sections: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write `sections` (state dicts, nested as deeply as an optimiser's) and `meta` to `path`, atomically.

    Sections may contain tensors of any shape and device, numbers, text, None, and lists, tuples and dicts of them.
    `load` returns the same types, keys and bits, with tensors on the CPU in their layout (contiguous or channels
    last). Shared tensors (tied weights) are stored once. Raises CheckpointError for anything else, and if the disk is
    not writable or stays full until retries end (`patience.retry`); a previous checkpoint is then still intact.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    stored: dict[tuple, str] = {}
    content = json.dumps(
        {"sections": _encode(sections, "", tensors, stored), "meta": _encode(meta, "meta", tensors, stored)}
    )
    metadata = {"format": FORMAT, "content": content, "crc32": _checksum(content, tensors)}
    try:
        files.put(path, lambda temporary: save_file(tensors, temporary, metadata))
    except (OSError, SafetensorError, StorageError) as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {error}; a previous one is intact") from error


def load(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the (sections, meta) that `save` wrote to `path`, with tensors on the CPU, each in its own memory.

    Raises CheckpointError, naming the file, if it is missing, truncated, changed in any byte, or not a checkpoint.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Without a copy all tensors would be views of one map of the file, which the optimiser would write to.
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
    """Return the tensors of any safetensors file, on the CPU. Raise SafetensorError for any other file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a plain safetensors file, atomically: each tensor under its name, contiguous, for other programs.

    Raises CheckpointError if the disk is not writable or stays full until retries end.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        # The format's own writer makes files that only their owner can read.
        files.put(Path(path), lambda aside: aside.write_bytes(as_bytes(plain, dict(metadata))))
    except (OSError, SafetensorError, StorageError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def remove(folder: Path | str) -> None:
    """Delete the checkpoints in `folder`, and the folder if it is then empty; do nothing if it does not exist."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in (*folder.glob("*.safetensors"), *folder.glob(".*.part")):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def digest(path: Path | str) -> str:
    """Return the sha256 of the file's bytes in hexadecimal, as sha256sum prints it.

    This process remembers it until the file, its size or its times change.
    """
    status = os.stat(path)
    return _digest(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=64)
def _digest(path: str, *stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, shapes, types and bytes of a state dict, independent of any file."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha256.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha256.update(_bytes(tensor.detach().cpu()))
    return sha256.hexdigest()


def _encode(value: Any, path: str, tensors: dict[str, Tensor], stored: dict[tuple, str]) -> Any:
    """Return `value` as JSON that keeps types and key types; its tensors go to `tensors` under their path in it."""
    if isinstance(value, Tensor):
        kind = "channels_last" if _is_channels_last(value) else "tensor"
        return {kind: _store(value, path, tensors, stored)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        pairs = [[_key(k, path), _encode(v, f"{path}/{k}".lstrip("/"), tensors, stored)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(v, f"{path}/{i}", tensors, stored) for i, v in enumerate(value)]}
    raise CheckpointError(
        f"{path} is a {type(value).__name__}; a checkpoint contains tensors, numbers, text, None, "
        "and lists, tuples and dicts of them"
    )


def _key(key: Any, path: str) -> Any:
    if key is None or isinstance(key, bool | int | float | str):
        return key
    raise CheckpointError(f"{path} has the key {key!r}; a checkpoint's keys are numbers or text")


def _store(tensor: Tensor, path: str, tensors: dict[str, Tensor], stored: dict[tuple, str]) -> str:
    """Add the tensor to `tensors`, once for all names of a shared tensor; return its name there."""
    tensor = tensor.detach()
    same = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
    if tensor.numel() and same in stored:
        return stored[same]
    name = path
    while name in tensors:  # {"a/b": …} beside {"a": {"b": …}}
        name += "'"
    tensors[name] = tensor.cpu().contiguous()
    if tensors[name].data_ptr() == tensor.data_ptr():
        # The format rejects views of shared memory (slices, transposes, tensors read from one map).
        tensors[name] = tensors[name].clone()
    stored[same] = name
    return name


def _is_channels_last(tensor: Tensor) -> bool:
    """Return whether to restore channels last, which the format loses and optimiser steps need to round equally."""
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
    """Return a checksum that detects flipped bits, since the format checks only sizes."""
    crc = zlib.crc32(content.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(_bytes(tensors[name]), crc)
    return f"{crc:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
