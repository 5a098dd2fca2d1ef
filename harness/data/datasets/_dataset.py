"""What a dataset is: an index of images with labels and a class split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from harness.errors import UserError, printable, some

CUSTOMARY = (1, 2, 4, 8)  # the K of R@K where nobody names others

SPLITS = ("train", "validation", "test")
ROLES = ("query", "gallery")
EXAMPLES = 5  # of what is passed over


class DatasetError(UserError):
    """A dataset is missing, damaged or unfair; the message says which one and why, in the user's words.

    The message can be printed and stored, whatever bytes the names of files in it are.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


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
