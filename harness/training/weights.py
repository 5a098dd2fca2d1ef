"""The weights of a backbone: which file, what it contains, and which of its tensors the network needs.

A user's file may contain the weights themselves, or a checkpoint around them (`{"state_dict": …}`), under the names
of a model that contained the network (model.conv1.weight). They are unwrapped only if that is unambiguous, and a
sentence says what was unwrapped.
"""

import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import first_few
from harness.training import backbones, checkpoint
from harness.training.anatomy import Anatomy, anatomy
from harness.training.backbones import ModelError, Unavailable, first_line

CONTAINERS = ("state_dict", "model", "")  # keys searched first; "" is the file itself
DEPTH = 3  # levels of nested dictionaries that are searched
COMPUTED = "num_batches_tracked"  # a counter that older files lack and torch adds
SHOWN = 3  # names in a message


class Misfit(Exception):
    """Raised if a file does not contain the wanted weights; the message continues after the file's name."""


@dataclass(frozen=True)
class Chosen:
    """The tensors of a file that a network needs, and what was unwrapped or left out to get them ("": nothing)."""

    tensors: dict[str, Tensor]
    unwrapped: str = ""


def read(path: Path) -> Any:
    """Return the content of a safetensors or torch file, recognised by its bytes; code in a pickle is never run.

    Raises Misfit with what the file is instead.
    """
    try:
        if problem := _other_kind(path):
            raise Misfit(problem)
        if _safetensors_header(path) is not None:
            return checkpoint.tensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Misfit:
        raise
    except Exception as error:  # readers raise many kinds of errors on unknown bytes
        raise Misfit(_unreadable(path, error)) from error


def choose(content: Any, expected: Mapping[str, torch.Size], classifier: set[str]) -> Chosen:
    """Return the tensors of a network with the names `expected` from what `read` returned, without its `classifier`.

    Known containers are searched first, each for a prefix under which the whole network is found. If no network is
    complete, the most likely tensors are returned unchanged, because a reader that converts names may know them.
    Raises Misfit if there are no tensors, or if the network is there twice.
    """
    candidates = sorted(_dictionaries(content), key=lambda candidate: _priority(candidate[0]))
    if not candidates:
        held = first_few(map(str, content), SHOWN) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise Misfit(f"contains no tensors, but {held}")
    whole = [(where, prefix) for where, tensors in candidates for prefix in _prefixes(tensors, expected)]
    if not whole:
        where, tensors = candidates[0]
        return Chosen(_without(tensors, classifier), f"read from {where!r}" if where else "")
    first = [place for place in whole if place[0] == whole[0][0]]
    rivals = first if whole[0][0] in CONTAINERS else whole
    if len(rivals) > 1:
        named = " and ".join(repr(".".join(filter(None, (where, prefix)))) for where, prefix in rivals[:SHOWN])
        raise Misfit(f"contains this network {len(rivals)} times, under {named}: save the one you want in a file")
    (where, prefix), tensors = whole[0], dict(candidates)[whole[0][0]]
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    others = [name for name in tensors if not name.startswith(prefix)]
    notes = [f"read from {where!r}"] if where else []
    notes += [f"prefix {prefix!r} stripped"] if prefix else []
    notes += [f"{len(others)} other tensors left out ({first_few(others, SHOWN)})"] if others else []
    return Chosen(_without(own, classifier), ", ".join(notes))


def misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str:
    """Return how tensors differ from those that a network needs: names, shapes, how many match."""
    wanted = [name for name in expected if not name.endswith(COMPUTED)]
    prefix = _likely_prefix(tensors, wanted)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    shapes = {name: tuple(own[name].shape) for name in wanted if name in own}
    wrong = [name for name, shape in shapes.items() if shape != tuple(expected[name])]
    missing = [name for name in wanted if name not in own]
    extra = [name for name in own if name not in expected]
    if not shapes:
        return (
            f"none of the {len(wanted)} tensors of this network is in it; its names are {first_few(tensors, SHOWN)}: "
            "the weights of another network"
        )
    clauses = [f"{len(shapes) - len(wrong)} of the {len(wanted)} tensors of this network are in it"]
    clauses += [f"under the prefix {prefix!r}"] if prefix else []
    if missing:
        clauses.append(f"{len(missing)} are missing ({first_few(missing, SHOWN)})")
    if wrong:
        name = wrong[0]
        clauses.append(f"{len(wrong)} have another shape ({name} {shapes[name]} instead of {tuple(expected[name])})")
    if extra:
        clauses.append(f"{len(extra)} belong to no layer of it ({first_few(extra, SHOWN)})")
    return ", ".join(clauses)


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


def _cut_off(size: int, header: int) -> str | None:
    return f"is cut off: it has {size:,} bytes, its header alone is {header:,}" if size < header else None


def _kind_of_zip(path: Path) -> str | None:
    """Return what a zip archive is; None for one that torch wrote."""
    if not zipfile.is_zipfile(path):
        return f"is cut off: it has {path.stat().st_size:,} bytes and its end is missing; download it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return "is a TorchScript program, not weights: save the state_dict of the module"
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
        with path.open("rb") as file:
            try:
                entries = json.loads(file.read(header)[8:])
                ends = [about["data_offsets"][1] for name, about in entries.items() if name != "__metadata__"]
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


def _dictionaries(content: Any, where: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary of tensors in a checkpoint, with the keys that lead to it."""
    if not isinstance(content, Mapping) or not depth:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for name, value in content.items():
        yield from _dictionaries(value, f"{where}.{name}" if where else str(name), depth - 1)


def _priority(where: str) -> int:
    return CONTAINERS.index(where) if where in CONTAINERS else len(CONTAINERS)


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[str]:
    """Return the prefixes under which every expected name is found."""
    wanted = [name for name in expected if not name.endswith(COMPUTED)]
    first = wanted[0]
    starts = [name[: -len(first)] for name in tensors if name == first or name.endswith(f".{first}")]
    return [start for start in starts if all(start + name in tensors for name in wanted)]


def _likely_prefix(tensors: Mapping[str, Tensor], wanted: list[str]) -> str:
    """Return the prefix under which most of the wanted names are found, preferring ""."""
    starts = {""}
    for name in tensors:
        parts = name.split(".")
        starts |= {".".join(parts[:n]) + "." for n in range(1, min(len(parts), DEPTH + 1))}
    return max(sorted(starts), key=lambda start: sum(start + name in tensors for name in wanted))


def _without(tensors: Mapping[str, Tensor], classifier: set[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in classifier}


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
    chosen, overlay = Chosen({}), {"file": str(file), "custom_load": False}
    expected = {name: tensor.shape for name, tensor in body.network.state_dict().items()}
    try:
        if not published:
            chosen = choose(read(file), expected, _classifier(body, expected))
            overlay = {"state_dict": dict(chosen.tensors), "num_classes": 0, "label_offset": 0}
        network = backbones.create(body.backbone, body.options, overlay)
    except Misfit as error:
        raise ModelError(f"the weights file {file} {error}") from error
    except Exception as error:  # the file's reader and timm's conversion raise many kinds of errors
        why = misfit(chosen.tensors, expected) if chosen.tensors else _why_unreadable(file, error)
        raise ModelError(f"the weights file {file} does not fit {body.backbone}: {why}") from error
    network.pretrained_cfg.pop("state_dict", None)
    return network, chosen.unwrapped


def _why_unreadable(file: Path, error: Exception) -> str:
    """Return why a file that timm fetched cannot be read; usually it was cut off."""
    try:
        read(file)
    except Misfit as problem:
        return f"it {problem}; delete it, and it will be fetched again"
    return first_line(error)


def _classifier(body: Anatomy, expected: Mapping[str, Any]) -> set[str]:
    """Return the names of the classifier's tensors, which are left out because the embedder has its own head."""
    return set(backbones.on_meta(body.backbone, body.options, num_classes=1000).state_dict()) - set(expected)


def file_of(body: Anatomy, pretrained: bool | str | Path) -> Path | None:
    """Return the file to load: the user's, the published one (fetched once, then cached by the hub), or None."""
    if pretrained is not True:
        return Path(pretrained) if pretrained is not False else None
    try:
        return backbones.published_file(body.config)
    except Exception as error:  # network, proxy, hub and disk raise different errors
        raise Unavailable(
            f"the published weights of {body.tag} are not on this machine and cannot be fetched "
            f"({first_line(error)}); go online, or set pretrained to false or to a file of weights"
        ) from error
