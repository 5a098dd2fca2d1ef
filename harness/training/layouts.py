"""The layouts of files of weights: where in a file a network is, and under which names.

Known are these layouts, in any of the wrappers `WRAPPERS`, with and without a classifier or a projector:

timm           its state dicts, and its training checkpoints with an average of the weights (EMA)
torchvision    networks that have the same names in timm (ResNet), and ViT
DINO           the teacher of a training; DINOv2, also with its blocks in chunks; DINOv3
CLIP           the image tower of OpenAI's and open_clip's state dicts
MoCo, SimCLR, Barlow Twins, VICReg, mmpretrain   a network under a prefix
this program   checkpoints of its runs, and networks with the names `backbone.…` and `head.…`

Names of other authors are converted by timm, and by `RENAMED` where timm does not know them. A network fits if it is
then filled exactly. A file may contain several copies of the network. The one that its authors evaluate is taken
(`COPIES`), and a sentence says so; other copies are ambiguous.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.errors import first_few
from harness.training.backbones import Converter

COPIES = (  # evaluated by their authors, rather than a student, the weights without average, or a key encoder
    "teacher",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "encoder_q",
    "base_encoder",
)
CONTAINERS = ("state_dict", "model", "")  # keys searched first; "" is the file itself
WRAPPERS = {*COPIES, "student", "encoder_k", "momentum_encoder", *CONTAINERS}
WRAPPERS |= {"module", "_orig_mod", "backbone", "encoder", "net", "network"}
TOWERS = ("visual", "vision_encoder", "image_encoder")  # names of an image network beside a text network
HEADS = {"head", "heads", "fc", "classifier", "projector", "projection_head", "prototypes", "attn_pool", "AuxLogits"}
RENAMED = {
    "compiled blocks": {r"\b_orig_mod\.": ""},
    "blocks in chunks": {r"^blocks\.\d+\.(\d+)\.": r"blocks.\1."},  # the second number counts through all chunks
    "torchvision's ViT": {
        r"^class_token$": "cls_token",
        r"^conv_proj\.": "patch_embed.proj.",
        r"^encoder\.pos_embedding$": "pos_embed",
        r"^encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.": r"blocks.\1.norm\2.",
        r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_": r"blocks.\1.attn.qkv.",
        r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.": r"blocks.\1.attn.proj.",
        r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.": r"blocks.\1.mlp.fc1.",
        r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.": r"blocks.\1.mlp.fc2.",
        r"^encoder\.ln\.": "norm.",
        r"^heads\.head\.": "head.",
    },
}
UNKNOWN = {  # layouts that nothing converts, by parts of names in them
    "Hugging Face transformers": r"layers?\.\d+\.(attention|self_attn)\.|embeddings\.(cls_|patch_)|embedder\.e",
    "torchvision": r"features\.\d+\.\d+\.|encoder_layer_\d+\.|trunk_output\.",
    "Detectron2": r"bottom_up\.|stem\.conv1\.norm\.",
}
DEPTH = 3  # levels of nested dictionaries that are searched
COMPUTED = "num_batches_tracked"  # a counter that older files lack and torch adds
SHOWN = 3  # names in a message


class Misfit(Exception):
    """Raised if a file does not contain the wanted weights; the message continues after the file's name."""


@dataclass(frozen=True)
class Chosen:
    """The tensors that fill a network, under its own names, and what was unwrapped or left out ("": nothing)."""

    tensors: dict[str, Tensor]
    unwrapped: str = ""


@dataclass(frozen=True)
class Wanted:
    """What fills the backbone `name`: tensors of these `shapes`, and how names of other authors become its own.

    Tensors with the names in `classifier` are left out silently, because the embedder has its own head.
    """

    name: str
    shapes: Mapping[str, torch.Size]
    classifier: frozenset[str]
    convert: Converter

    @cached_property
    def names(self) -> list[str]:
        """Return the names that a file must contain."""
        return [name for name in self.shapes if not name.endswith(COMPUTED)]

    def count(self, tensors: Mapping[str, Tensor]) -> int:
        """Return how many of the wanted tensors are there, in any shape."""
        return sum(name in tensors for name in self.names)

    def split(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors without heads that the network lacks, and the names of those that are no classifier."""
        modules = tuple(name.rpartition(".")[0] + "." for name in self.classifier)
        unknown = [name for name in tensors if name not in self.shapes]
        heads = [name for name in unknown if name.startswith(modules) or name.partition(".")[0] in HEADS]
        own = {name: tensor for name, tensor in tensors.items() if name not in heads}
        return own, [name for name in heads if name not in self.classifier]


@dataclass(frozen=True)
class Place:
    """The tensors under the keys `where` of a file whose names begin with `prefix`, which is removed from them."""

    where: str
    prefix: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        return ".".join(filter(None, (self.where, self.prefix)))

    @property
    def rank(self) -> tuple[int, int]:
        """Return the order in which copies of a network are taken: evaluated copies first, then known containers."""
        words = {*self.where.split("."), *self.prefix.split(".")}
        copy = next((n for n, word in enumerate(COPIES) if word in words), len(COPIES))
        return copy, _container(self.where)

    @property
    def names(self) -> set[str]:
        """Return the names of the tensors in the file, with the keys that lead to them."""
        return {_joined(self.where, self.prefix + name) for name in self.tensors}


@dataclass(frozen=True)
class Reading:
    """The tensors of a place under the names of a network, read as a `layout` ("": its own), without `heads`."""

    place: Place
    layout: str
    tensors: dict[str, Tensor]
    heads: list[str]


def choose(content: Any, wanted: Wanted) -> Chosen:
    """Return the tensors that fill a network exactly from what `weights.read` returned.

    Raises Misfit if there are no tensors, if none or not all of them fit (names, shapes, how many match), or if the
    network is there several times and none of the copies is one of `COPIES`.
    """
    dictionaries = dict(sorted(_dictionaries(content), key=lambda item: _container(item[0])))
    if not dictionaries:
        held = first_few(map(str, content), SHOWN) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise Misfit(f"contains no tensors, but {held}")
    places = [place for where, tensors in dictionaries.items() for place in _places(where, tensors, wanted)]
    readings = [reading for place in places for reading in _readings(place, wanted)]
    fits = _fitting(readings, wanted)
    if not fits:
        closest = max(readings, key=lambda reading: wanted.count(reading.tensors))
        why = _unknown(closest, wanted) or misfit(closest.tensors, wanted.shapes, closest.place.prefix)
        raise Misfit(f"does not fit {wanted.name}: {why}")
    ranked = sorted(fits, key=lambda reading: reading.place.rank)
    equals = [str(reading.place) for reading in ranked if reading.place.rank == ranked[0].place.rank]
    if len(equals) > 1:
        named = " and ".join(map(repr, sorted(equals)[:SHOWN]))
        raise Misfit(f"contains this network {len(equals)} times, under {named}: save the one you want in a file")
    return Chosen(ranked[0].tensors, _note(ranked, dictionaries))


def misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], prefix: str = "") -> str:
    """Return how tensors differ from those that a network needs (names, shapes, how many match); "" if they fit."""
    wanted = [name for name in expected if not name.endswith(COMPUTED)]
    shapes = {name: tuple(tensors[name].shape) for name in wanted if name in tensors}
    wrong = [name for name, shape in shapes.items() if shape != tuple(expected[name])]
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    if not shapes:
        return (
            f"none of the {len(wanted)} tensors of this network is in it; its names are {first_few(tensors, SHOWN)}: "
            "the weights of another network"
        )
    if not (missing or wrong or extra):
        return ""
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


def _dictionaries(content: Any, where: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary of tensors in a checkpoint, with the keys that lead to it."""
    if not isinstance(content, Mapping) or not depth:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for name, value in content.items():
        yield from _dictionaries(value, _joined(where, str(name)), depth - 1)


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _container(where: str) -> int:
    return CONTAINERS.index(where) if where in CONTAINERS else len(CONTAINERS)


def _places(where: str, tensors: Mapping[str, Tensor], wanted: Wanted) -> Iterator[Place]:
    """Yield the places of a dictionary where the network may be, outer ones first, without a text network."""
    prefixes = {"", *_wrappers(tensors), *_complete(tensors, wanted), _likely(tensors, wanted)}
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tower = {name: tensor for name, tensor in own.items() if name.partition(".")[0] in TOWERS}
        yield Place(where, prefix, tower or own)


def _wrappers(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return all prefixes of names that consist of known wrappers."""
    found = set()
    for name in tensors:
        prefix = ""
        for word in name.split(".")[:-1]:
            if word not in WRAPPERS:
                break
            prefix += f"{word}."
            found.add(prefix)
    return found


def _complete(tensors: Mapping[str, Tensor], wanted: Wanted) -> list[str]:
    """Return the prefixes under which every wanted name is found."""
    first = wanted.names[0]
    starts = [name[: -len(first)] for name in tensors if name == first or name.endswith(f".{first}")]
    return [start for start in starts if all(start + name in tensors for name in wanted.names)]


def _likely(tensors: Mapping[str, Tensor], wanted: Wanted) -> str:
    """Return the prefix under which most of the wanted names are found, preferring ""."""
    starts = {""}
    for name in tensors:
        parts = name.split(".")
        starts |= {".".join(parts[:n]) + "." for n in range(1, min(len(parts), DEPTH + 1))}
    return max(sorted(starts), key=lambda start: sum(start + name in tensors for name in wanted.names))


def _readings(place: Place, wanted: Wanted) -> Iterator[Reading]:
    """Yield the tensors of a place as each known layout reads them."""
    for layout, tensors in _renamed(place.tensors):
        try:
            converted = wanted.convert(tensors)
        except Exception:  # timm's conversions raise many kinds of errors on the names of another network
            converted = tensors
        own, heads = wanted.split(converted)
        by_timm = "" if own.keys() <= tensors.keys() else "other authors"
        yield Reading(place, layout or by_timm, own, heads)


def _renamed(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors under their own names, and as each layout of `RENAMED` that changes one of them."""
    yield "", tensors
    for layout, rules in RENAMED.items():
        names = {name: name for name in tensors}
        for pattern, replacement in rules.items():
            names = {name: re.sub(pattern, replacement, new) for name, new in names.items()}
        if any(name != new for name, new in names.items()):
            yield layout, {new: tensors[name] for name, new in names.items()}


def _fitting(readings: list[Reading], wanted: Wanted) -> list[Reading]:
    """Return the first fitting reading of each place, without places around others: some layouts strip prefixes."""
    fits: dict[str, Reading] = {}
    for reading in sorted(readings, key=lambda reading: -len(reading.place.prefix)):
        own = reading.place.names
        around = any(fit.place.names <= own for fit in fits.values())
        if not around and not misfit(reading.tensors, wanted.shapes):
            fits[str(reading.place)] = reading
    return list(fits.values())


def _unknown(closest: Reading, wanted: Wanted) -> str:
    """Return which layout without a conversion a file has; "" if most of the network is in it, or none is known."""
    if 2 * wanted.count(closest.tensors) < len(wanted.names):
        for authors, pattern in UNKNOWN.items():
            if name := next((name for name in closest.place.tensors if re.search(rf"(^|\.)({pattern})", name)), None):
                return (
                    f"its names are those of {authors} ({name}), which are not converted for this network; take "
                    "timm's weights of it, or save them under timm's names"
                )
    return ""


def _note(ranked: list[Reading], dictionaries: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return what was unwrapped from a file to get the first of its readings, and what was left out."""
    best, place = ranked[0], ranked[0].place
    copies = {name for reading in ranked for name in reading.place.names}
    every = [_joined(where, name) for where, tensors in dictionaries.items() for name in tensors]
    others = [name for name in every if name not in copies]
    others = [name.removeprefix(f"{place.where}.") for name in others] + [place.prefix + name for name in best.heads]
    notes = [f"read from {place.where!r}"] if place.where else []
    notes += [f"prefix {place.prefix!r} stripped"] if place.prefix else []
    notes += [f"preferred to {' and '.join(repr(str(rival.place)) for rival in ranked[1:])}"] if ranked[1:] else []
    notes += [f"names of {best.layout} converted"] if best.layout else []
    notes += (
        [f"{len(others)} other tensor{'s' * (len(others) > 1)} left out ({first_few(others, SHOWN)})"]
        if others
        else []
    )
    return ", ".join(notes)
