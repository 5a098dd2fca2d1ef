"""The pooled features of a frozen backbone, computed once per machine and mapped into memory.

A file holds those of every image of a dataset. It is named by everything that its numbers depend on: the weights, the
images and how they are prepared, pooling, and the versions of the packages that compute.
"""

import hashlib
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config import Trial
from harness.data.cache import building, require_room
from harness.data.datasets import Dataset, DatasetError
from harness.data.images import images_path
from harness.runs.provenance import provenance
from harness.training import weights

LAYOUT = b"FEATURES3"
FOOTER = struct.Struct("<16sQQQQ")  # layout, images, views, width, bytes of the description
CHECKED = 64  # rows whose checksums are compared on opening
COMPUTED_WITH = ("torch", "timm")
NUMBER = np.dtype("<f4")

Announce = Callable[[str], None]
Rows = Callable[[Iterable[range]], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Features:
    """Pooled features (n, views, width) float32 of the images of a dataset, mapped from a file.

    `about` says what they come from: `width`, `weights`, `weights_read`, `weights_digest` and `normalisation` as in
    `Embedder`, the number of its `parameters`, and `images`, the fingerprint of the pixels.
    """

    array: np.ndarray
    about: Mapping[str, Any]
    path: Path

    def __len__(self) -> int:
        return len(self.array)

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the images that the features were computed of."""
        return self.about["images"]

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Return the features (b, views, width) of images, on `device`."""
        rows = torch.from_numpy(np.take(self.array, np.asarray(indices), axis=0))
        return rows.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else rows


@dataclass(frozen=True)
class Views:
    """What `Augmentation` is to images: training draws one view of each image, and a test sees the first."""

    def load(self, rows: Tensor, generator: torch.Generator | None = None, each: object = map) -> Tensor:
        """Return the rows, which are read already."""
        return rows

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return features (b, width), each of a view drawn from all views (b, views, width)."""
        if rows.shape[1] == 1:
            return rows[:, 0]
        drawn = torch.randint(rows.shape[1], (len(rows),), generator=generator, device=generator.device)
        return rows[torch.arange(len(rows), device=rows.device), drawn.to(rows.device)]

    def evaluate(self, rows: Tensor) -> Tensor:
        """Return the features (b, width) of the test crops."""
        return rows[:, 0]


@dataclass(frozen=True)
class Source:
    """What computes features: `rows` yields those of each range of images (b, views, width); `about` is as there."""

    title: str
    about: Mapping[str, Any]
    views: int
    rows: Rows
    batch: int


def features_path(trial: Trial, dataset: Dataset, cache: Path) -> Path:
    """Return the file of a trial's features, named by what determines its numbers.

    Published weights are named by their network and by timm's version, because only timm knows their file. Raises
    Unavailable if a file of weights cannot be read.
    """
    network, images = trial.backbone, trial.images
    start = network.pretrained if isinstance(network.pretrained, bool) else weights.digest(network.pretrained)
    packages = [provenance()["packages"].get(name) for name in COMPUTED_WITH]
    views = [images.views, images.crop_scale, images.crop_ratio, images.flip] if images.views > 1 else 1
    content = [
        *(LAYOUT.decode(), packages, images_path(dataset, images.stored_px, cache).name, images.path),
        *(images.side_px, images.centre_share, views, trial.model.pooling, start),
        network.model_dump(mode="json", include={"name", "options", "mean", "std", "interpolation"}),
    ]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Path(cache) / f"features-{dataset.name}-{network.name}-{images.side_px}px-{key}.bin".replace("/", "_")


def open_features(
    path: Path,
    count: int,
    source: Callable[[], Source],
    announce: Announce | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Open the features of `count` images, computed once per machine, by one process at a time.

    Batches are appended to a temporary file, so an interrupted computation continues after its last batch; the
    complete file is renamed to `path`. Opening it compares its length and the checksums of 64 images with what was
    written; a damaged file is computed again.

    announce: called with sentences about the work, before and while computing.
    progress: called with (images done, all images) while computing.

    Raises DatasetError and CacheError as `open_images` does.
    """
    if (features := _stored(path, count)) is None:
        with building(path, continued=True) as scratch:
            if (features := _stored(path, count)) is None:
                _compute(scratch, count, source(), announce, progress)
        features = _stored(path, count) if features is None else features
    if features is None:
        raise DatasetError(f"{path} was written but cannot be read back: the disk is failing or losing files")
    return features


def _compute(
    scratch: Path, count: int, source: Source, announce: Announce | None, progress: Callable[[int, int], None] | None
) -> None:
    """Write all rows, then a crc32 of each image and of the description, the description and the footer."""
    width = source.about["width"]
    size = source.views * width * NUMBER.itemsize
    with open(scratch, "a+b") as file:
        done = min(file.seek(0, os.SEEK_END) // size, count) // source.batch * source.batch
        file.truncate(done * size)
        takes = require_room(scratch.parent, (count - done) * size, source.title)
        if announce is not None:
            announce(
                f"{takes}: computing the features of {count - done} images"
                + f", after {done} that are done" * (done > 0)
            )
        parts = [range(start, min(start + source.batch, count)) for start in range(done, count, source.batch)]
        for rows in _timed(source.rows(parts), done, count, announce, progress):
            file.write(np.ascontiguousarray(rows, dtype=NUMBER).data)
            file.flush()
            os.fsync(file.fileno())
        file.seek(0)
        about = json.dumps(dict(source.about)).encode()
        sums = np.array([*(zlib.crc32(file.read(size)) for _ in range(count)), zlib.crc32(about)], dtype="<u4")
        file.write(sums.tobytes() + about + FOOTER.pack(LAYOUT, count, source.views, width, len(about)))


def _timed(
    batches: Iterable[np.ndarray],
    done: int,
    count: int,
    announce: Announce | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[np.ndarray]:
    """Yield the batches, and report after each how many images are done; announce every tenth with the time left."""
    began, first, tenths = time.monotonic(), done, 0
    for rows in batches:
        yield rows
        done += len(rows)
        if progress is not None:
            progress(done, count)
        if announce is not None and (now := 10 * (done - first) // (count - first)) > tenths:
            tenths, left_s = now, (time.monotonic() - began) / (done - first) * (count - done)
            if done < count and left_s > 30:
                announce(f"features: {done} of {count} images, about {math.ceil(left_s / 60)} min left")


def _stored(path: Path, count: int) -> Features | None:
    """Map the features in a file; return None if it is missing, unreadable or not as it was written."""
    try:
        with open(path, "rb") as file:
            file.seek(-FOOTER.size, os.SEEK_END)
            layout, images, views, width, described = FOOTER.unpack(file.read())
            length = images * views * width * NUMBER.itemsize
            whole = length + 4 * (images + 1) + described + FOOTER.size
            if (layout.rstrip(b"\0"), images) != (LAYOUT, count) or os.fstat(file.fileno()).st_size != whole:
                return None
            file.seek(length)
            sums = np.fromfile(file, dtype="<u4", count=count + 1)
            about = file.read(described)
        array = np.memmap(path, dtype=NUMBER, mode="r", shape=(count, views, width))
    except (OSError, ValueError, struct.error):
        return None
    checked = np.unique(np.linspace(0, count - 1, CHECKED).astype(int))
    if zlib.crc32(about) != sums[-1] or any(zlib.crc32(array[i].data) != sums[i] for i in checked):
        return None
    return Features(np.asarray(array), json.loads(about), path)
