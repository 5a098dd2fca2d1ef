"""The weights of a backbone: which file, what kind of file it is, and a network filled with it.

`layouts` finds the network in a user's file.
"""

import json
import re
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.errors import first_few
from harness.training import backbones, checkpoint, layouts
from harness.training.anatomy import Anatomy, anatomy
from harness.training.backbones import ModelError, Unavailable, first_line
from harness.training.layouts import SHOWN, Misfit


def read(path: Path) -> Any:
    """Return the content of a safetensors or torch file, recognised by its bytes; code in a pickle is never run.

    A checkpoint of this program gives its sections. A pickle may contain the settings of its training, as
    argparse.Namespace, which only holds values. Raises Misfit with what the file is instead.
    """
    try:
        if problem := _other_kind(path):
            raise Misfit(problem)
        if (header := _safetensors_header(path)) is not None:
            own = _entries(path, header).get("__metadata__", {}).get("format") == checkpoint.FORMAT
            return checkpoint.load(path)[0] if own else checkpoint.tensors(path)
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Misfit:
        raise
    except Exception as error:  # readers raise many kinds of errors on unknown bytes
        raise Misfit(_unreadable(path, error)) from error


def _other_kind(path: Path) -> str | None:
    """Return what a file is if its first bytes and size show that it is not (complete) weights; else None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return "is empty"
    if (header := _safetensors_header(path)) is not None:  # its length may look like other magic bytes
        return _cut_off(size, header)
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights themselves: fetch them with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the download returned a page instead of the file"
    if text.startswith(b"{"):
        several = '"weight_map"' in path.read_text(encoding="utf-8", errors="replace")
        return "is JSON, " + ("the index of weights in several files" if several else "not weights")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    packed = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"Rar!": "rar", b"7z\xbc\xaf": "7z"}
    for magic, name in packed.items():
        if head.startswith(magic):
            return f"is a {name} archive: unpack it, and name the weights file in it"
    if head[257:262] == b"ustar":
        return (
            f"is a tar archive ({first_few(_names_in_tar(path), SHOWN)}): unpack it, and name the weights file in it"
        )
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes them, not torch weights"
    if not head.startswith(b"\x80") and head.isascii() and head.decode().isprintable():
        return f"is text, not weights; it begins with {head[:40].decode()!r}"
    return None


def _safetensors_header(path: Path) -> int | None:
    """Return the length of a safetensors header with the 8 bytes before it; None for another kind of file."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return 8 + length if len(head) == 9 and head[8:] == b"{" and 2 <= length < 2**27 else None


def _entries(path: Path, header: int) -> dict[str, Any]:
    """Return the header of a safetensors file: what it says of each tensor, and its metadata."""
    with path.open("rb") as file:
        return json.loads(file.read(header)[8:])


def _cut_off(size: int, header: int) -> str | None:
    return f"is cut off: it has {size:,} bytes, its header alone is {header:,}" if size < header else None


def _kind_of_zip(path: Path) -> str | None:
    """Return what a zip archive is; None for one that torch wrote."""
    if not zipfile.is_zipfile(path):
        return f"is cut off: it has {path.stat().st_size:,} bytes and its end is missing; download it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "is a TorchScript program, not weights: save the state_dict of the module, if you trust the program: "
            "torch.save(torch.jit.load(FILE).state_dict(), …)"
        )
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"is an archive of numpy arrays ({first_few(names, SHOWN)}), not torch weights"
    return f"is a zip archive ({first_few(names, SHOWN)}): unpack it, and name the weights file in it"


def _names_in_tar(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def _unreadable(path: Path, error: Exception) -> str:
    """Return why a file that looks like weights cannot be read."""
    if (header := _safetensors_header(path)) is not None:
        try:
            entries = _entries(path, header).items()
            ends = [about["data_offsets"][1] for name, about in entries if name != "__metadata__"]
        except (ValueError, TypeError, LookupError):
            return "has a damaged header"
        whole, size = header + max(ends, default=0), path.stat().st_size
        if size != whole:
            return f"is {'cut off' if size < whole else 'longer than its header says'}: {size:,} of {whole:,} bytes"
    if (code := re.search(r"GLOBAL (\S+)", str(error))) or "weights_only" in str(error).lower():
        named = f" ({code[1]})" if code else ""
        return (
            f"is a pickle that would run code{named} when it is read: save only the weights, "
            "torch.save(model.state_dict(), …) or safetensors"
        )
    return f"cannot be read ({(str(error).strip() or type(error).__name__).splitlines()[0]})"


def digest(file: str | Path) -> str:
    """Return the sha256 of a file of weights. Raise Unavailable if it cannot be read."""
    try:
        return checkpoint.digest(file)
    except OSError as error:
        raise Unavailable(f"the weights {file} cannot be read: {error.strerror}") from error


def fetch(
    backbone: str,
    pretrained: bool | str | Path = True,
    options: Mapping[str, Any] | None = None,
    side_px: int | None = None,
) -> Path | None:
    """Return the weights file for this choice of network, fetching it if necessary; None for initial weights.

    Raises Unavailable if published weights are not on this machine and cannot be fetched.
    """
    return file_of(anatomy(backbone, options, side_px), pretrained)


def open_weights(
    backbone: str, file: Path, published: bool, options: Mapping[str, Any] | None = None, side_px: int | None = None
) -> str:
    """Load a weights file into a backbone as a trial will, and return what was unwrapped or left out ("": nothing).

    Raises ModelError with what the file is, or how it differs from the backbone.
    """
    return build(anatomy(backbone, options, side_px), file, published=published)[1]


def build(body: Anatomy, file: Path | None, *, published: bool) -> tuple[backbones.Backbone, str]:
    """Build a backbone with the weights of a file, and return it with what was unwrapped from a user's file.

    A user's file must fill the backbone exactly; published weights are read by timm.
    """
    if file is None:
        return backbones.create(body.backbone, body.options), ""
    if published:
        try:
            return backbones.create(body.backbone, body.options, {"file": str(file), "custom_load": False}), ""
        except Exception as error:  # the file's reader and timm's conversion raise many kinds of errors
            why = _why_unreadable(file, error)
            raise ModelError(f"the weights file {file} does not fit {body.backbone}: {why}") from error
    try:
        chosen = layouts.choose(read(file), _wanted(body))
    except Misfit as error:
        raise ModelError(f"the weights file {file} {error}") from error
    network = backbones.create(body.backbone, body.options)
    network.load_state_dict(chosen.tensors)
    return network, chosen.unwrapped


def _wanted(body: Anatomy) -> layouts.Wanted:
    shapes = {name: tensor.shape for name, tensor in body.network.state_dict().items()}
    return layouts.Wanted(body.backbone, shapes, *backbones.conversion(body.backbone, body.options, body.network))


def _why_unreadable(file: Path, error: Exception) -> str:
    """Return why a file that timm fetched cannot be read; usually it was cut off."""
    try:
        read(file)
    except Misfit as problem:
        return f"it {problem}; delete it, and it will be fetched again"
    return first_line(error)


def file_of(body: Anatomy, pretrained: bool | str | Path) -> Path | None:
    """Return the file to load: the user's, the published one (fetched once, then cached by the hub), or None."""
    if pretrained is not True:
        return Path(pretrained) if pretrained is not False else None
    try:
        return backbones.published_file(body.config)
    except Exception as error:  # network, proxy, hub and disk raise different errors
        raise Unavailable(
            f"the published weights of {body.tag} are not on this machine and cannot be fetched "
            f"({first_line(error)}); go online, name a file with --weights, or set pretrained to a file or to false"
        ) from error
