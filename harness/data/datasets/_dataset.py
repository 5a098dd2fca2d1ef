"""What a dataset is: an index of images with labels and a class split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from harness.errors import UserError, first_few, printable

USUAL_KS = (1, 2, 4, 8)  # the default K of R@K

SPLITS = ("train", "validation", "test")
ROLES = ("query", "gallery")
EXAMPLES = 5  # of ignored files


class DatasetError(UserError):
    """Raised for a dataset that is missing, damaged or unfair; the message says which one and why.

    The message can always be printed and stored, even if file names in it are not UTF-8.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class ArgumentError(DatasetError):
    """Raised for a dataset with an unknown option, one of another type, or without the folder that it needs."""


@dataclass(frozen=True)
class PassedOver:
    """Ignored files and folders among the images, which are not part of the dataset. A folder counts as one."""

    reason: str  # what they are, such as "files that are not images"
    count: int
    examples: tuple[str, ...]  # paths of the first few

    @classmethod
    def of(cls, reason: str, paths: Sequence[str]) -> PassedOver:
        """Return the ignored files of one reason, with the first few paths."""
        return cls(reason, len(paths), tuple(map(printable, sorted(paths)[:EXAMPLES])))

    def __str__(self) -> str:
        return f"ignored {self.count} {self.reason} ({first_few(self.examples, of=self.count)})"


@dataclass(frozen=True)
class Dataset:
    """An index of n images of C classes; pixels are read one by one and not stored here."""

    name: str
    keys: tuple[str, ...]  # one readable, unique id per image, e.g. its relative path
    labels: np.ndarray  # int64 (n,), indices into class_names
    class_names: tuple[str, ...]
    split: np.ndarray  # (n,) of "train", "validation", "test"; "validation" only if the source has one
    read: Callable[[int], Image.Image]  # image i, RGB or L; raises DatasetError naming the key
    role: np.ndarray | None = None  # (n,) of "query", "gallery", ""; None: every test image is both
    groups: tuple[str, ...] | None = None  # (C,), e.g. the alphabet of each character
    ks: tuple[int, ...] = USUAL_KS  # the K of R@K that papers use for it
    mirrored: bool = True  # whether a horizontal flip keeps the class
    pixel_fingerprint: str | None = None  # sha256 over the decoded pixels, if that is cheap
    source_stamp: str = ""  # changes with the bytes of the source: digests, or sizes and times of files
    local_stamp: str = ""  # of files: also changes if a file is replaced by one of equal size and time
    files: tuple[str, ...] | None = None  # the file of image i, if images are files
    deviations: tuple[str, ...] = ()  # how it differs from the published benchmark of its name
    passed_over: tuple[PassedOver, ...] = ()  # ignored files and folders, by reason

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def stamp(self) -> str:
        """Return a stamp that changes on this machine if the source may have changed."""
        return self.local_stamp or self.source_stamp

    @cached_property
    def index_fingerprint(self) -> str:
        """Return the sha256 over the sorted rows (key, class name, split, role), equal for equal benchmarks."""
        roles = [""] * len(self) if self.role is None else self.role.tolist()
        rows = zip(self.keys, self.labels.tolist(), self.split.tolist(), roles, strict=True)
        lines = sorted("\0".join((key, self.class_names[c], split, role)) for key, c, split, role in rows)
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
