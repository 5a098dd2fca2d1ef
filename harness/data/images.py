"""Where the pixels of a trial come from: images decoded once per machine, or the files, decoded every time.

`open_images` decodes a dataset into one uint8 file that every process of the machine maps into memory; `Originals`
decodes whenever it is asked. Both give batches that `loading.Augmentation` turns into what a network sees.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from harness.data.cache import CacheError, building, remembered
from harness.data.datasets import Dataset, DatasetError

LAYOUT = b"images-3"  # changes when the file, or the decoded pixels of the same files, would
FOOTER = struct.Struct("<8sQQ")  # layout, images, bytes of pixels
CHECKED_IMAGES = 64  # whose sums are compared when a file is opened
SAMPLED_IMAGES = 64  # from which its size is estimated
MOST_NAMED = 20  # images that cannot be read
LONGEST = 4  # longer side over shorter side up to which an image is kept whole


@dataclass(frozen=True)
class Images:
    """All images of a dataset, decoded: uint8 pixels (3, h, w) one after the other, mapped read-only and shared."""

    pixels: np.ndarray  # (bytes,) uint8
    sizes: np.ndarray  # (n, 2) height and width
    path: Path
    sums: np.ndarray  # (n,) crc32 of each image's pixels, as they were when they were decoded

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over sizes and sums of all images in order: equal on every machine where the pixels are."""
        return hashlib.sha256(self.sizes.tobytes() + self.sums.tobytes()).hexdigest()

    @cached_property
    def offsets(self) -> np.ndarray:
        """(n + 1,) where each image begins, and the end."""
        return np.concatenate([[0], np.cumsum(3 * self.sizes.prod(axis=1, dtype=np.int64))])

    @cached_property
    def array(self) -> np.ndarray | None:
        """(n, 3, h, w) where all images have one size; None where they have several."""
        if (self.sizes != self.sizes[0]).any():
            return None
        return np.asarray(self.pixels).reshape(len(self), 3, *self.sizes[0])

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor | list[Tensor]:
        """The images on `device`, copied out of the file, which is read nowhere else.

        (b, 3, h, w) uint8 where all images of the dataset have one size, else a list of (3, h, w) uint8.
        """
        indices = np.asarray(indices)
        if self.array is not None:
            return _moved(np.take(self.array, indices, axis=0), device)
        chosen = [self.pixels[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        together = _moved(np.concatenate(chosen), device)  # one copy to a GPU, not one an image
        parts = together.split([len(image) for image in chosen])
        return [part.view(3, *size) for part, size in zip(parts, self.sizes[indices].tolist(), strict=True)]


def _moved(pixels: np.ndarray, device: torch.device | str) -> Tensor:
    images = torch.from_numpy(pixels)
    if torch.device(device).type == "cuda":
        return images.pin_memory().to(device, non_blocking=True)
    return images.to(device)


@dataclass(frozen=True)
class Originals:
    """The images of a dataset as their files hold them, decoded anew for every batch: the classical path."""

    dataset: Dataset
    fingerprint: str = ""  # of what the files hold; see `contents`

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Unread:
        """The images, to be read one by one where they are transformed; `device` is where the result shall be."""
        return Unread(self.dataset, tuple(np.asarray(indices).tolist()), torch.device(device))


@dataclass(frozen=True)
class Unread:
    """A batch of images that are still files."""

    dataset: Dataset
    indices: tuple[int, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, place: int) -> Image.Image:
        """The image at `place` of the batch, in RGB. Raises DatasetError naming it when it cannot be read."""
        return self.dataset.read(self.indices[place]).convert("RGB")


def open_images(
    dataset: Dataset,
    side_px: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Images:
    """The images of a dataset at one size, decoded once per machine and mapped into memory.

    Each image is resized so that its shorter side has `side_px`, and kept whole, or, where it is longer than four
    times its shorter side, its middle; grey images fill three equal channels. Resizing is antialiased, and bilinear
    whatever a network's weights want, so that all networks share the file. `images-<dataset>-<side>px-<key>.bin` in
    `cache` is named by the dataset's fingerprints; it is written aside and renamed, under a lock, so processes that
    start together build it once. On opening, its length and the sums of 64 images are compared with what was
    written; a file that was cut short or damaged is built again.

    progress: called with (images decoded, images in all) while building.
    announce: called with a sentence that says how much disk the file will take, before it is built.

    Raises DatasetError naming the images that cannot be read, and CacheError when `cache` cannot be written.
    """
    path = images_path(dataset, side_px, cache)
    if (images := _stored(path, len(dataset))) is None:
        with building(path) as scratch:
            if (images := _stored(path, len(dataset))) is None:
                _require_room(dataset, side_px, path.parent, announce)
                _build(dataset, side_px, scratch, progress)
        images = _stored(path, len(dataset)) if images is None else images
    if images is None:
        raise DatasetError(
            f"{path} was written and cannot be read back: the disk is failing, or files are lost there"
        )
    return images


def contents(dataset: Dataset, cache: Path) -> str:
    """What tells the images of a dataset from others under the same names: sha256 over the bytes of their files.

    The files are read, and decoded to see whether that works, once for each `stamp`. A dataset that is no files has
    its `pixel_fingerprint` or stamp. Raises DatasetError naming the images that cannot be read.
    """
    if dataset.files is None and dataset.pixel_fingerprint:
        return dataset.pixel_fingerprint

    def problem(i: int) -> str:
        try:
            dataset.read(i)
        except DatasetError as error:
            return str(error)
        return ""

    def read() -> str:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            _refuse_unreadable(dataset, [said for said in threads.map(problem, range(len(dataset))) if said])
        if dataset.files is None:
            return dataset.source_stamp
        digest = hashlib.sha256()
        for file in dataset.files:
            digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
        return digest.hexdigest()

    names = hashlib.sha256("\0".join(dataset.files or dataset.keys).encode(errors="surrogateescape")).hexdigest()
    return remembered(cache, ["contents, decoded", dataset.name, names, dataset.stamp], read)


def images_path(dataset: Dataset, side_px: int, cache: Path) -> Path:
    """The file of `open_images`: named by what decides its bytes: the images in order, not labels."""
    content = (dataset.pixel_fingerprint, dataset.source_stamp, dataset.local_stamp, *dataset.keys)
    key = hashlib.sha256(repr((LAYOUT, PIL.__version__, side_px, content)).encode()).hexdigest()
    return Path(cache) / f"images-{dataset.name}-{side_px}px-{key[:16]}.bin"


def disk_bytes(dataset: Dataset, side_px: int) -> int:
    """About how many bytes of disk `open_images` takes, from the shapes of 64 images."""
    areas = []
    for i in np.unique(np.linspace(0, len(dataset) - 1, SAMPLED_IMAGES).astype(int)):
        try:
            width, height = _size_and_box(dataset.read(int(i)).size, side_px)[0]
        except DatasetError:
            continue  # building names every image that cannot be read, this one too
        areas.append(width * height)
    return round(len(dataset) * 3 * (np.mean(areas) if areas else side_px**2))


def _require_room(dataset: Dataset, side_px: int, folder: Path, announce: Callable[[str], None] | None) -> None:
    needed, free = disk_bytes(dataset, side_px), shutil.disk_usage(folder).free
    takes = (
        f"{dataset.name} at {side_px} px takes about {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB left"
    )
    if free < needed:
        raise CacheError(f"{takes}: free some space there, or name another folder for the cache")
    if announce is not None:
        announce(f"{takes}: decoding {len(dataset)} images")


def _stored(path: Path, count: int) -> Images | None:
    """The images in a file, mapped; None where none can be opened, or where it is not what was written."""
    try:
        with open(path, "rb") as file:
            file.seek(-FOOTER.size, os.SEEK_END)
            layout, images, length = FOOTER.unpack(file.read())
            whole = length + 12 * count + FOOTER.size
            if (layout, images) != (LAYOUT, count) or os.fstat(file.fileno()).st_size != whole:
                return None
            file.seek(length)
            sizes = np.fromfile(file, dtype="<u4", count=2 * count).reshape(count, 2)
            sums = np.fromfile(file, dtype="<u4", count=count)
        stored = Images(np.memmap(path, dtype=np.uint8, mode="r", shape=(length,)), sizes, path, sums)
    except (OSError, ValueError):
        return None
    if stored.offsets[-1] != length:
        return None
    for i in np.unique(np.linspace(0, count - 1, CHECKED_IMAGES).astype(int)):
        if zlib.crc32(stored.pixels[stored.offsets[i] : stored.offsets[i + 1]]) != sums[i]:
            return None
    return stored


def _build(dataset: Dataset, side_px: int, scratch: Path, progress: Callable[[int, int], None] | None) -> None:
    """Write the images one after the other, then their sizes (8 bytes each) and crc32 (4 bytes each), the footer."""
    sizes, sums = np.zeros((len(dataset), 2), dtype="<u4"), np.zeros(len(dataset), dtype="<u4")
    length, unreadable = 0, []
    with open(scratch, "wb") as file:
        for i, (pixels, value) in enumerate(_decoded(dataset, side_px)):
            if pixels is None:
                unreadable.append(value)
            else:
                sizes[i], sums[i] = pixels.shape[1:], value
                length += file.write(pixels)
            if progress is not None:
                progress(i + 1, len(dataset))
        file.write(sizes.tobytes() + sums.tobytes() + FOOTER.pack(LAYOUT, len(dataset), length))
    if unreadable:
        scratch.unlink()
    _refuse_unreadable(dataset, unreadable)


def _refuse_unreadable(dataset: Dataset, unreadable: list[str]) -> None:
    """Raise DatasetError with what is wrong with images that cannot be read, unless there are none."""
    named = unreadable[:MOST_NAMED]
    if more := len(unreadable) - len(named):
        named.append(f"and {more} more, all of which `metrix-bench doctor {dataset.name}` names")
    if named:
        raise DatasetError("\n  ".join([f"{dataset.name}: {len(unreadable)} images cannot be read:", *named]))


def _decoded(dataset: Dataset, side_px: int) -> Iterator[tuple[np.ndarray, int] | tuple[None, str]]:
    """Pixels and crc32 of every image in order, or None and why it cannot be read; a few are held at a time.

    Threads suffice, because Pillow decodes and resizes without the interpreter's lock.
    """

    def decode(i: int) -> tuple[np.ndarray, int] | tuple[None, str]:
        try:
            pixels = resized(dataset.read(i), side_px)
        except DatasetError as error:
            return None, str(error)
        return pixels, zlib.crc32(pixels)

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads:
        numbers = iter(range(len(dataset)))
        waiting = deque(threads.submit(decode, i) for i in islice(numbers, 8 * cores))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(threads.submit(decode, i) for i in islice(numbers, 1))


def resized(image: Image.Image, side_px: int) -> np.ndarray:
    """(3, h, w) uint8 with a shorter side of `side_px`: torchvision's Resize(side_px), of the middle if very long."""
    size, box = _size_and_box(image.size, side_px)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box).convert("RGB"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size_and_box(extents: tuple[int, int], side_px: int) -> tuple[tuple[int, int], tuple[float, ...]]:
    """(width, height) after resizing, and the box (left, top, right, bottom) of the image that is kept."""
    short = min(extents)
    kept = [min(extent, LONGEST * short) for extent in extents]
    corner = [(extent - part) / 2 for extent, part in zip(extents, kept, strict=True)]
    size = tuple(side_px * part // short for part in kept)
    return size, (*corner, *(c + part for c, part in zip(corner, kept, strict=True)))
