"""The datasets: one file each, found by its name. A dataset is an index of images with labels and a class split.

A file `<name>.py` in this folder is the dataset `<name>`. It holds

    NEEDS_DATA: bool                                                  # must the user name a folder or file?
    def load(data: Path | None, cache: Path, **options) -> Dataset    # keyword options with defaults

and the first line of its docstring is its description. No other file has to be edited. Datasets of image files
build on `_files.py`. A published benchmark has two more names, by which `harness.data.doctor` judges a copy of it:

    STANDARD: Standard                                                # what a standard copy holds
    def index(data: Path, **options) -> Dataset                       # what the copy's lists say, files not looked at
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from harness import registry
from harness.data.cache import default_folder
from harness.data.datasets import _labels
from harness.data.scorable import CUSTOMARY, Scope
from harness.errors import UserError, printable, some

if TYPE_CHECKING:
    from harness.data.datasets._standard import Standard

SPLITS = ("train", "validation", "test")
ROLES = ("query", "gallery")
EXAMPLES = 5  # of what is passed over


class DatasetError(UserError):
    """A dataset is missing, damaged or unfair; the message says which one and why, in the user's words.

    The message can be printed and stored, whatever bytes the names of files in it are.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class ArgumentError(DatasetError):
    """A dataset was called with an unknown option, one of another type, or without the folder that it needs."""


@dataclass(frozen=True)
class PassedOver:
    """Files and folders among the images that are not part of the dataset. A folder counts as one."""

    reason: str  # what they are, such as "files that are not images"
    count: int
    examples: tuple[str, ...]  # paths of the first few

    @classmethod
    def of(cls, reason: str, paths: Sequence[str]) -> PassedOver:
        """All that is passed over for one reason."""
        return cls(reason, len(paths), tuple(map(printable, sorted(paths)[:EXAMPLES])))

    def __str__(self) -> str:
        return f"{self.count} {self.reason} passed over ({some(self.examples, of=self.count)})"


@dataclass(frozen=True)
class Dataset:
    """An index of n images of C classes; pixels are read one by one and never kept here."""

    name: str
    keys: tuple[str, ...]  # one readable, unique id per image, e.g. its relative path
    labels: np.ndarray  # int64 (n,), indices into class_names
    class_names: tuple[str, ...]
    split: np.ndarray  # (n,) of "train", "validation", "test"; "validation" only where the source names one
    read: Callable[[int], Image.Image]  # image i, RGB or L; raises DatasetError naming the key
    role: np.ndarray | None = None  # (n,) of "query", "gallery", ""; None: every test image is both
    groups: tuple[str, ...] | None = None  # (C,), e.g. the alphabet of each character
    ks: tuple[int, ...] = CUSTOMARY  # the K of R@K that are customary for it
    mirrored: bool = True  # does a horizontal flip keep the class?
    pixel_fingerprint: str | None = None  # sha256 over the decoded pixels, where that is cheap
    source_stamp: str = ""  # changes when the source's bytes do: digests, or sizes and times of the files
    local_stamp: str = ""  # of files: changes too when one is replaced by another of its size and time
    files: tuple[str, ...] | None = None  # the file of image i, where images are files
    deviations: tuple[str, ...] = ()  # what tells it from the published benchmark of its name
    passed_over: tuple[PassedOver, ...] = ()  # files and folders that are not part of it, by reason

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def stamp(self) -> str:
        """Changes on this machine whenever the source may have; equal stamps mean equal sources."""
        return self.local_stamp or self.source_stamp

    @cached_property
    def index_fingerprint(self) -> str:
        """sha256 over the sorted rows (key, class name, split, role): equal for equal benchmarks."""
        roles = [""] * len(self) if self.role is None else self.role.tolist()
        rows = zip(self.keys, self.labels.tolist(), self.split.tolist(), roles, strict=True)
        lines = sorted("\0".join((key, self.class_names[c], split, role)) for key, c, split, role in rows)
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Description:
    """What can be said of a dataset without loading it."""

    name: str
    title: str
    needs_data: bool
    options: dict[str, Any]  # option: default


def names() -> tuple[str, ...]:
    """The datasets that exist: the files of this folder, in alphabetical order."""
    return registry.names(__name__)


def describe(name: str) -> Description:
    """The title, options and needs of one dataset. Raises DatasetError for an unknown name."""
    module = _module(name)
    title = (inspect.getdoc(module) or "").partition("\n")[0]
    return Description(name, title, module.NEEDS_DATA, _options(module))


def load(name: str, data: Path | str | None = None, cache: Path | str | None = None, **options) -> Dataset:
    """Load the index of a dataset and check it (see `check`).

    name: one of `names()`.
    data: where the user's copy is; not looked at by datasets that need none (`describe(name).needs_data`).
    cache: folder for what is computed once, by default `~/.cache/metrix-bench`.
    options: the dataset's own, see `describe(name).options`.

    Raises DatasetError for an unknown name or option, for data that are missing and for what `check` refuses.
    """
    module, data, cache = _opened(name, data, cache, options)
    dataset = module.load(data, cache, **options)
    check(dataset)
    return dataset


def index(name: str, data: Path | str | None = None, cache: Path | str | None = None, **options) -> Dataset:
    """What a copy says that it holds: not yet checked and, of a published benchmark, its files not yet looked at.

    For `harness.data.doctor`; arguments and errors as for `load`.
    """
    module, data, cache = _opened(name, data, cache, options)
    if not hasattr(module, "index"):
        return module.load(data, cache, **options)
    return module.index(data, **{option: options[option] for option in options if option != "allow_nonstandard"})


def _opened(
    name: str, data: Path | str | None, cache: Path | str | None, options: dict[str, Any]
) -> tuple[ModuleType, Path | None, Path]:
    """The module of a dataset and the paths to give it, once its options and its data are known to exist."""
    module = _module(name)
    known = _options(module)
    for option, value in options.items():
        if option not in known:
            raise ArgumentError(registry.unknown(f"option of dataset {name!r}", option, known))
        _check_type(name, option, value, known[option])
    if module.NEEDS_DATA and data is None:
        raise ArgumentError(
            f"dataset {name!r} reads your own copy: say where it is with --data FOLDER (data=… in Python)"
        )
    if module.NEEDS_DATA:
        try:
            os.stat(data)
        except (FileNotFoundError, NotADirectoryError):
            raise ArgumentError(f"dataset {name!r}: there is no {data}") from FileNotFoundError(data)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise ArgumentError(f"dataset {name!r}: {data}: {getattr(error, 'strerror', error)}") from error
    return module, None if data is None else Path(data), Path(cache) if cache else default_folder()


def standard(name: str) -> Standard | None:
    """What a standard copy of a published benchmark holds; None for a dataset that is none.

    Raises DatasetError for an unknown name.
    """
    return getattr(_module(name), "STANDARD", None)


def _module(name: str) -> ModuleType:
    try:
        return registry.entry(__name__, name, "dataset")
    except ValueError as error:
        raise DatasetError(str(error)) from None


def check(dataset: Dataset) -> None:
    """Raise DatasetError with all `problems` of a dataset, unless it has none."""
    if found := problems(dataset):
        raise DatasetError("\n  ".join(found))


def problems(dataset: Dataset) -> list[str]:
    """Why a dataset cannot be trained on or judged, a sentence each.

    No images; an image listed twice; names that are not UTF-8; labels that cannot be told apart by eye; fewer than
    two classes in a split; a class in two splits; a split whose classes hold one image each; query and gallery roles
    under which no query has a positive.
    """
    if not len(dataset):
        return [f"{dataset.name}: no images"]
    checks = (_listed_twice, _name_problems, _label_problems, _split_problems, _role_problems)
    return [sentence for check in checks for sentence in check(dataset)]


def _listed_twice(dataset: Dataset) -> Iterator[str]:
    if len(set(dataset.keys)) < len(dataset):
        seen: set[str] = set()
        twice = [key for key in dataset.keys if key in seen or seen.add(key)]
        yield f"{dataset.name}: {len(twice)} images are listed twice ({some(twice)})"


def _name_problems(dataset: Dataset) -> Iterator[str]:
    """Names that no record, table or page could hold, which are written in UTF-8."""
    if strange := [key for key in dataset.keys if not _labels.utf8(key)]:
        yield (
            f"{dataset.name}: {len(strange)} files have names that are not UTF-8 ({some(strange)}): rename them, for "
            "instance with convmv -f latin1 -t utf8 -r --notest FOLDER"
        )


def _label_problems(dataset: Dataset) -> Iterator[str]:
    """Labels that nobody would spell this way on purpose, and those that are one label to the eye."""
    labels = [label for label in dataset.class_names if _labels.utf8(label)]
    if faults := [said for label in labels if (said := _labels.fault(label))]:
        what = "labels begin or end with a blank, or hold invisible characters"
        yield f"{dataset.name}: {len(faults)} {what}: {some(faults)}"
    if groups := _labels.look_alikes(labels):
        named = [" and ".join(map(_labels.shown, group)) for group in groups]
        yield f"{dataset.name}: labels that {_labels.ALIKE}: {some(named)}. {_labels.REMEDY}"


def _split_problems(dataset: Dataset) -> Iterator[str]:
    classes = {split: np.unique(dataset.labels[dataset.split == split]) for split in SPLITS}
    for split in SPLITS:
        absent = split == "validation" and not len(classes[split])
        if len(classes[split]) < 2 and not absent:
            yield f"{dataset.name}: {len(classes[split])} classes in {split}, at least 2 are needed"
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = np.intersect1d(classes[first], classes[second])
        if len(both):
            named = some([dataset.class_names[c] for c in both])
            yield f"FAIR-02 {dataset.name}: {len(both)} classes in both {first} and {second} ({named})"
    for split in SPLITS:
        if len(classes[split]) and (problem := Scope.of(dataset.labels[dataset.split == split]).problem(split)):
            yield f"{dataset.name}: {problem}"


def _role_problems(dataset: Dataset) -> Iterator[str]:
    if dataset.role is None:
        return
    test = dataset.split == "test"
    if not np.isin(dataset.role[test], ROLES).all():
        blank = [dataset.keys[i] for i in np.flatnonzero(test & ~np.isin(dataset.role, ROLES))]
        yield f"{dataset.name}: {len(blank)} test images are neither query nor gallery ({some(blank)})"
    if problem := Scope.of(dataset.labels[test], dataset.role[test]).problem("test"):
        yield f"{dataset.name}: {problem}"


def _options(module: ModuleType) -> dict[str, Any]:
    parameters = list(inspect.signature(module.load).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def _check_type(name: str, option: str, value: Any, default: Any) -> None:
    """An option has the type of its default; whole numbers do for shares, and None says nothing."""
    allowed = (int, float) if isinstance(default, float) else type(default)
    wrong = isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, allowed)
    if default is not None and wrong:
        raise ArgumentError(f"dataset {name!r}: {option} = {value!r}, expected something like {default!r}")
