"""The images of a trial: decoded once per machine, or from their files each time.

`open_images` decodes a dataset into one uint8 file that all processes of the machine map into memory; `Originals`
decodes for every batch. Both return batches that `loading.Augmentation` prepares for a network.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from harness.data.ahead import read_ahead
from harness.data.cache import building, remembered, require_room
from harness.data.datasets import Dataset, DatasetError
from harness.data.datasets._decode import is_plain_jpeg

LAYOUT = b"images-3"  # changes with the format of the file, or with the decoding of the same images
FOOTER = struct.Struct("<8sQQ")  # layout, images, bytes of pixels
CHECKED_IMAGES = 64  # whose checksums are compared when a file is opened
SAMPLED_IMAGES = 64  # from which the size of the file is estimated
MAX_NAMED = 20  # unreadable images in a message
MAX_RATIO = 4  # of longer to shorter side; longer images are cropped


@dataclass(frozen=True)
class Images:
    """All images of a dataset, decoded: consecutive uint8 pixels (3, h, w), mapped read-only and shared."""

    pixels: np.ndarray  # (bytes,) uint8
    sizes: np.ndarray  # (n, 2) height and width
    path: Path
    sums: np.ndarray  # (n,) crc32 of each image's pixels at decoding

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over sizes and checksums of all images, equal on every machine if the pixels are."""
        return hashlib.sha256(self.sizes.tobytes() + self.sums.tobytes()).hexdigest()

    @cached_property
    def offsets(self) -> np.ndarray:
        """Return the offsets (n + 1,) of all images, and the end."""
        return np.concatenate([[0], np.cumsum(3 * self.sizes.prod(axis=1, dtype=np.int64))])

    @cached_property
    def array(self) -> np.ndarray | None:
        """Return (n, 3, h, w) if all images have the same size, else None."""
        if (self.sizes != self.sizes[0]).any():
            return None
        return np.asarray(self.pixels).reshape(len(self), 3, *self.sizes[0])

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor | list[Tensor]:
        """Copy images from the file to `device`.

        Return (b, 3, h, w) uint8 if all images of the dataset have the same size, else a list of (3, h, w) uint8.
        """
        indices = np.asarray(indices)
        if self.array is not None:
            pixels = host_bytes((len(indices), *self.array.shape[1:]), device)
            np.take(self.array, indices, axis=0, out=pixels.numpy(), mode="clip")  # else NumPy copies twice
            return pixels.to(device, non_blocking=True)
        chosen = [self.pixels[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        pixels = host_bytes((sum(map(len, chosen)),), device)
        np.concatenate(chosen, out=pixels.numpy())
        parts = pixels.to(device, non_blocking=True).split([len(image) for image in chosen])  # one copy to a GPU
        return [part.view(3, *size) for part, size in zip(parts, self.sizes[indices].tolist(), strict=True)]


def host_bytes(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Return uint8 memory of the host to fill and copy to `device`.

    For a GPU it is pinned memory, which torch uses again once the copy has finished.
    """
    return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.device(device).type == "cuda")


@dataclass(frozen=True)
class Originals:
    """The images of a dataset in their files, decoded for every batch: the classical path."""

    dataset: Dataset
    fingerprint: str = ""  # of the contents of the files; see `contents`
    decoder: str = "pillow"  # or "torchvision-gpu"

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Unread:
        """Return the images unread, for reading one by one during their transform; the result goes to `device`."""
        return Unread(self.dataset, tuple(np.asarray(indices).tolist()), torch.device(device), self.decoder)


@dataclass(frozen=True)
class Unread:
    """A batch of images that are not read yet."""

    dataset: Dataset
    indices: tuple[int, ...]
    device: torch.device
    decoder: str = "pillow"

    def __len__(self) -> int:
        return len(self.indices)

    def jpeg(self, position: int) -> bytes | None:
        """Return the file at `position` of the batch if it is a JPEG that needs nothing but decoding, else None."""
        assert self.dataset.files is not None
        content = Path(self.dataset.files[self.indices[position]]).read_bytes()
        return content if is_plain_jpeg(content) else None

    def read(self, position: int) -> Image.Image:
        """Read the image at `position` of the batch, in RGB. Raise DatasetError naming it if it cannot be read."""
        return self.dataset.read(self.indices[position]).convert("RGB")


def open_images(
    dataset: Dataset,
    side_px: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Images:
    """Open the images of a dataset at one size, decoded once per machine and mapped into memory.

    Each image is resized to `side_px` for its shorter side. An image longer than four times its shorter side is
    cropped to its middle. Grey images get three equal channels. Resizing is antialiased and always bilinear, whatever
    a network's weights expect, so that all networks share the file. The file `images-<dataset>-<side>px-<key>.bin` in
    `cache` is named by the dataset's fingerprints. It is written under a temporary name and renamed, under a lock, so
    that concurrent processes build it once. Opening it compares its length and the checksums of 64 images with what
    was written; a truncated or damaged file is built again.

    progress: called with (decoded images, all images) while building.
    announce: called with a sentence about the disk space needed, before building.

    Raises DatasetError naming the unreadable images, and CacheError if `cache` cannot be written.
    """
    path = images_path(dataset, side_px, cache)
    if (images := _stored(path, len(dataset))) is None:
        with building(path) as scratch:
            if (images := _stored(path, len(dataset))) is None:
                _require_room(dataset, side_px, path.parent, announce)
                _build(dataset, side_px, scratch, progress)
        images = _stored(path, len(dataset)) if images is None else images
    if images is None:
        raise DatasetError(f"{path} was written but cannot be read back: the disk is failing or losing files")
    return images


def contents(dataset: Dataset, cache: Path) -> str:
    """Return a fingerprint of the images of a dataset: the sha256 over the bytes of their files.

    The files are read and test-decoded once for each `stamp`. Without files, the fingerprint is the dataset's
    `pixel_fingerprint` or stamp. Raises DatasetError naming the unreadable images.
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
            _require_readable(dataset, [text for text in threads.map(problem, range(len(dataset))) if text])
        if dataset.files is None:
            return dataset.source_stamp
        digest = hashlib.sha256()
        for file in dataset.files:
            digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
        return digest.hexdigest()

    names = hashlib.sha256("\0".join(dataset.files or dataset.keys).encode(errors="surrogateescape")).hexdigest()
    return remembered(cache, ["contents, decoded", dataset.name, names, dataset.stamp], read)


def images_path(dataset: Dataset, side_px: int, cache: Path) -> Path:
    """Return the file of `open_images`, named by what determines its bytes: the images in order, not their labels."""
    content = (dataset.pixel_fingerprint, dataset.source_stamp, dataset.local_stamp, *dataset.keys)
    key = hashlib.sha256(repr((LAYOUT, PIL.__version__, side_px, content)).encode()).hexdigest()
    return Path(cache) / f"images-{dataset.name}-{side_px}px-{key[:16]}.bin"


def disk_bytes(dataset: Dataset, side_px: int) -> int:
    """Estimate how many bytes of disk `open_images` takes, from the shapes of 64 images."""
    areas = []
    for i in np.unique(np.linspace(0, len(dataset) - 1, SAMPLED_IMAGES).astype(int)):
        try:
            width, height = _size_and_box(dataset.read(int(i)).size, side_px)[0]
        except DatasetError:
            continue  # building will name every unreadable image
        areas.append(width * height)
    return round(len(dataset) * 3 * (np.mean(areas) if areas else side_px**2))


def _require_room(dataset: Dataset, side_px: int, folder: Path, announce: Callable[[str], None] | None) -> None:
    takes = require_room(folder, disk_bytes(dataset, side_px), f"{dataset.name} at {side_px} px")
    if announce is not None:
        announce(f"{takes}: decoding {len(dataset)} images")


def _stored(path: Path, count: int) -> Images | None:
    """Map the images in a file; return None if it is missing, unreadable or not as it was written."""
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
        if zlib.crc32(stored.pixels[stored.offsets[i] : stored.offsets[i + 1]].data) != sums[i]:
            return None
    return stored


def _build(dataset: Dataset, side_px: int, scratch: Path, progress: Callable[[int, int], None] | None) -> None:
    """Write all images, then their sizes (8 bytes each) and crc32 (4 bytes each), then the footer."""
    sizes, sums = np.zeros((len(dataset), 2), dtype="<u4"), np.zeros(len(dataset), dtype="<u4")
    length, unreadable = 0, []
    with open(scratch, "wb") as file:
        for i, (pixels, value) in enumerate(_decoded(dataset, side_px)):
            if pixels is None:
                unreadable.append(str(value))
            else:
                sizes[i], sums[i] = pixels.shape[1:], value
                length += file.write(pixels.data)
            if progress is not None:
                progress(i + 1, len(dataset))
        file.write(sizes.tobytes() + sums.tobytes() + FOOTER.pack(LAYOUT, len(dataset), length))
    if unreadable:
        scratch.unlink()
    _require_readable(dataset, unreadable)


def _require_readable(dataset: Dataset, unreadable: list[str]) -> None:
    """Raise DatasetError naming the unreadable images, if there are any."""
    named = unreadable[:MAX_NAMED]
    if more := len(unreadable) - len(named):
        named.append(f"and {more} more; `metrix-bench doctor {dataset.name}` names them all")
    if named:
        raise DatasetError("\n  ".join([f"{dataset.name}: {len(unreadable)} images cannot be read:", *named]))


def _decoded(dataset: Dataset, side_px: int) -> Iterator[tuple[np.ndarray, int] | tuple[None, str]]:
    """Yield pixels and crc32 of every image in order, or None and why it cannot be read."""

    def decode(i: int) -> tuple[np.ndarray, int] | tuple[None, str]:
        try:
            pixels = resized(dataset.read(i), side_px)
        except DatasetError as error:
            return None, str(error)
        return pixels, zlib.crc32(pixels.data)

    return read_ahead(decode, range(len(dataset)))


def resized(image: Image.Image, side_px: int) -> np.ndarray:
    """Resize to a shorter side of `side_px`, (3, h, w) uint8, like torchvision's Resize; crop very long images."""
    size, box = _size_and_box(image.size, side_px)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box).convert("RGB"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size_and_box(
    extents: tuple[int, int], side_px: int
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Return (width, height) after resizing, and the box (left, top, right, bottom) to keep of the image."""
    short = min(extents)
    width, height = (min(extent, MAX_RATIO * short) for extent in extents)
    left, top = (extents[0] - width) / 2, (extents[1] - height) / 2
    return (side_px * width // short, side_px * height // short), (left, top, left + width, top + height)
