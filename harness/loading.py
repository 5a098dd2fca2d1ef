"""Images to batches: decoded once per machine, augmented a whole batch at a time on the device.

`open_images` decodes a dataset into one uint8 file that every process of the machine maps into memory;
`batches` says which images make up each step of an epoch; `Augmentation` crops, flips and normalises.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from harness import registry
from harness.cache import CacheError, building
from harness.datasets import Dataset, DatasetError

LAYOUT = "images-1"  # changes when the decoded pixels of the same files would
CHECKED_IMAGES = 64  # whose sums are compared when a cache is opened
SMALL_PX = 40  # up to this side a batch is cropped faster by matrix products than image by image, on a CPU core too


@dataclass(frozen=True)
class Images:
    """All images of a dataset, decoded: (n, 3, side, side) uint8, mapped read-only and shared by processes."""

    array: np.ndarray
    path: Path

    def __len__(self) -> int:
        return len(self.array)

    @property
    def side_px(self) -> int:
        return self.array.shape[-1]

    def batch(self, indices: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """(b, 3, side, side) uint8 on `device`, copied out of the file: nothing else is read into memory."""
        images = torch.from_numpy(np.take(np.asarray(self.array), np.asarray(indices), axis=0))
        if torch.device(device).type == "cuda":
            return images.pin_memory().to(device, non_blocking=True)
        return images.to(device)


def open_images(
    dataset: Dataset, side_px: int, cache: Path, progress: Callable[[int, int], None] | None = None
) -> Images:
    """The images of a dataset at one size, decoded once per machine and mapped into memory.

    Each image is resized (antialiased) so that its shorter side has `side_px`, and its central square is kept;
    grey images fill three equal channels. The file `images-<dataset>-<side>px-<key>.npy` in `cache` is named by
    the dataset's fingerprints; it is written aside and renamed, under a lock, so processes that start together
    build it once. On opening, its length and the sums of 64 images are compared with what was written; a file
    that was cut short or damaged is built again.

    progress: called with (images decoded, images in all) while building.

    Raises DatasetError naming every image that cannot be read, and CacheError when `cache` cannot be written.
    """
    key = _cache_key(dataset, side_px)
    path = Path(cache) / f"images-{dataset.name}-{side_px}px-{key[:16]}.npy"
    shape = (len(dataset), 3, side_px, side_px)
    if (array := _stored(path, shape)) is None:
        with building(path) as scratch:
            if (array := _stored(path, shape)) is None:
                _build(dataset, shape, path, scratch, progress)
        array = _stored(path, shape) if array is None else array
    if array is None:
        raise DatasetError(
            f"{path} was written and cannot be read back: the disk is failing, or files are lost there"
        )
    return Images(array, path)


def cache_bytes(dataset: Dataset, side_px: int) -> int:
    """Bytes of disk that `open_images` takes for a dataset at one size."""
    return len(dataset) * 3 * side_px**2


def _cache_key(dataset: Dataset, side_px: int) -> str:
    """Of what decides the bytes of the file: the order of the images and their content, but not their labels."""
    content = (dataset.pixel_fingerprint, dataset.source_stamp, *dataset.keys)
    return hashlib.sha256(repr((LAYOUT, PIL.__version__, side_px, content)).encode()).hexdigest()


def _stored(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in a cache file, mapped; None where none can be opened, or where it is not what was written."""
    try:
        array = np.load(path, mmap_mode="r")
        sums = np.fromfile(path, dtype="<u4", offset=array.offset + array.nbytes)
    except (OSError, ValueError, EOFError):
        return None
    if array.shape != shape or array.dtype != np.uint8 or len(sums) != len(array):
        return None
    checked = np.unique(np.linspace(0, len(array) - 1, CHECKED_IMAGES).astype(int))
    return array if all(zlib.crc32(array[i]) == sums[i] for i in checked) else None


def _build(
    dataset: Dataset,
    shape: tuple[int, ...],
    path: Path,
    scratch: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode every image into `scratch`: an .npy file, followed by the crc32 of each image (4 bytes each).

    Threads suffice, because Pillow decodes and resizes without the interpreter's lock.
    """
    free, needed = shutil.disk_usage(path.parent).free, math.prod(shape)
    if free < needed:
        raise CacheError(
            f"{dataset.name} at {shape[-1]} px takes {needed / 1e9:.2f} GB and {path.parent} has {free / 1e9:.2f} GB "
            "left: free some space there, or name another folder for the cache"
        )
    sums, unreadable = np.zeros(len(dataset), dtype="<u4"), []
    with open(scratch, "wb") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        start = file.tell()

        def decode(i: int) -> str | None:
            try:
                pixels = square(dataset.read(i), shape[-1])
            except DatasetError as error:
                return str(error)
            sums[i] = zlib.crc32(pixels)
            _write_at(file.fileno(), pixels, start + i * pixels.nbytes)
            return None

        for done, error in enumerate(threads.map(decode, range(len(dataset))), start=1):
            unreadable += [error] if error else []
            if progress is not None:
                progress(done, len(dataset))
        file.seek(start + needed)
        file.write(sums.tobytes())
    if unreadable:
        scratch.unlink()
        raise DatasetError("\n  ".join([f"{dataset.name}: {len(unreadable)} images cannot be read:", *unreadable]))


def _write_at(descriptor: int, pixels: np.ndarray, offset: int) -> None:
    if os.pwrite(descriptor, pixels, offset) != pixels.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def square(image: Image.Image, side_px: int) -> np.ndarray:
    """(3, side, side) uint8: torchvision's Resize(side) and CenterCrop(side), in one resampling step.

    One step, because a strip of 10 x 100,000 pixels would otherwise be blown up before it is cropped.
    """
    short = min(image.size)
    resized = [side_px if extent == short else side_px * extent // short for extent in image.size]
    corner = [round((extent - side_px) / 2) for extent in resized]
    factor = [extent / after for extent, after in zip(image.size, resized, strict=True)]
    box = [c * f for c, f in zip(corner, factor, strict=True)]
    box += [min((c + side_px) * f, e) for c, f, e in zip(corner, factor, image.size, strict=True)]
    pixels = np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR, box=box).convert("RGB"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def batches(
    labels: np.ndarray,
    *,
    batch_size: int,
    sampler: str = "balanced",
    examples_per_class: int = 5,
    seed_of_epoch: int | Sequence[int] = 0,
) -> list[np.ndarray]:
    """The batches of one epoch: ⌊n / batch_size⌋ arrays of (batch_size,) indices into `labels`.

    labels: (n,) class of each training image.
    sampler: "shuffle" is a random order, cut into batches, the incomplete last one dropped. "balanced" puts
        batch_size / examples_per_class classes with examples_per_class images each into every batch; in an epoch
        all classes occur equally often (to within one), a class repeats an image only after it has shown all of
        them, and within a batch only where it holds fewer than examples_per_class.
    seed_of_epoch: decides everything; the same seed gives the same batches.

    Raises ValueError when the sizes do not fit the data or each other.
    """
    if not 1 <= batch_size <= len(labels):
        raise ValueError(f"batch_size = {batch_size}, expected 1 to {len(labels)}, the number of training images")
    generator = np.random.default_rng(seed_of_epoch)
    steps = len(labels) // batch_size
    if sampler == "shuffle":
        order = generator.permutation(len(labels))
        return list(order[: steps * batch_size].reshape(steps, batch_size))
    if sampler != "balanced":
        raise ValueError(registry.unknown("sampler", sampler, ("balanced", "shuffle")))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    if examples_per_class < 1 or batch_size % examples_per_class:
        raise ValueError(f"batch_size = {batch_size} is no multiple of examples_per_class = {examples_per_class}")
    classes_per_batch = batch_size // examples_per_class
    if classes_per_batch > len(members):
        raise ValueError(
            f"batch_size = {batch_size} with {examples_per_class} examples a class takes {classes_per_batch} "
            f"classes; there are {len(members)} to train on"
        )
    images = [_draws(indices, examples_per_class, generator) for indices in members]
    classes = _draws(np.arange(len(members)), classes_per_batch, generator)
    return [np.concatenate([next(images[c]) for c in next(classes)]) for _ in range(steps)]


def _draws(items: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless draws of `size` items: all are drawn once before any is drawn again.

    Where one shuffled round ends within a draw, the next begins with items that this draw does not hold yet.
    """
    waiting = items[:0]
    while True:
        while len(waiting) < size:
            fresh = generator.permutation(items)
            held = np.isin(fresh, waiting)
            waiting = np.concatenate([waiting, fresh[~held], fresh[held]])
        yield waiting[:size]
        waiting = waiting[size:]


@dataclass(frozen=True)
class Augmentation:
    """Whole batches of uint8 images to normalised float32, on the device where they are.

    Resampling is antialiased as in torchvision: a triangle ("bilinear") or Keys cubic ("bicubic") filter,
    stretched by the factor of reduction.

    side_px: side of the square images that come out.
    mean, std: per channel, for pixel values in [0, 1].
    crop_scale: area of the training crop as a share of the image's, from and to.
    crop_ratio: its width / height, from and to (drawn log-uniformly).
    flip: mirror half of the training images; wrong for characters (`Dataset.mirrored`).
    centre_share: in evaluation, the side of the central crop as a share of the resized image: 1 shows all of
        it, 0.875 is torchvision's Resize(256) and CenterCrop(224).
    """

    side_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    centre_share: float = 1.0

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise ValueError(registry.unknown("interpolation", self.interpolation, FILTERS))
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale = {self.crop_scale}, expected 0 < from <= to <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio = {self.crop_ratio}, expected 0 < from <= to")
        if not 0 < self.centre_share <= 1:
            raise ValueError(f"centre_share = {self.centre_share}, expected 0 < share <= 1")

    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random resized crop and flip: (b, 3, s, s) uint8 to (b, 3, side_px, side_px) float32.

        generator: a CPU generator gives the same crops on every device.
        The crops are torchvision's RandomResizedCrop: area and ratio are drawn up to ten times until the crop
        fits, otherwise the largest central crop of a permitted ratio is taken.
        """
        count, side = len(images), images.shape[-1]
        uniform = torch.rand(23, count, generator=generator, dtype=torch.float64, device=generator.device)
        crops = random_crops(uniform[:22], side, self.crop_scale, self.crop_ratio)
        mirrored = uniform[22] < (0.5 if self.flip else 0)
        # Per image of 224 px the matrix products take a CPU core 3 ms and torch's own 8-bit resize 0.2 ms; for
        # images of 32 px, and on a GPU for all, the call per image costs more than its arithmetic.
        if images.device.type != "cpu" or side <= SMALL_PX:
            return self._normalised(resize_together(images, crops, mirrored, self.side_px, self.interpolation))
        batch = torch.empty(count, 3, self.side_px, self.side_px)
        for place, crop in zip(
            batch, resize_each(images, crops, mirrored, self.side_px, self.interpolation), strict=True
        ):
            self._normalised(crop, out=place)  # while it is in the core's cache: twice as fast as afterwards
        return batch

    def evaluate(self, images: Tensor) -> Tensor:
        """Resize and central crop: (b, 3, s, s) uint8 to (b, 3, side_px, side_px) float32."""
        resized = round(self.side_px / self.centre_share)
        corner = round((resized - self.side_px) / 2)
        if images.shape[-1] != resized:
            pixels = images if images.device.type == "cpu" else images.float()  # CUDA has no 8-bit resize
            images = functional.interpolate(pixels, size=(resized, resized), mode=self.interpolation, antialias=True)
        inside = slice(corner, corner + self.side_px)
        return self._normalised(images[:, :, inside, inside])

    def _normalised(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """(pixel / 255 - mean) / std in float32, for pixels in [0, 255]; a cubic filter's overshoot is cut off."""
        mean, std = _as_tensors(tuple(self.mean), tuple(self.std), pixels.device)
        if pixels.is_floating_point():
            pixels = pixels.clamp_(0, 255)
        return torch.sub(pixels, mean, out=out).div_(std)


@lru_cache
def _as_tensors(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """(2, 3, 1, 1) for pixels in [0, 255]; kept, because a copy to a GPU in every step makes it wait."""
    with torch.inference_mode(False):  # an inference tensor would be kept for training, too
        return 255 * torch.tensor([mean, std], device=device).view(2, -1, 1, 1)


def random_crops(uniform: Tensor, side: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """(4, b) top, left, height, width of crops in a square image, whole pixels, from (22, b) uniform numbers."""
    log_from, log_to = math.log(ratio[0]), math.log(ratio[1])
    area = side**2 * (scale[0] + (scale[1] - scale[0]) * uniform[:10])
    shape = torch.exp(log_from + (log_to - log_from) * uniform[10:20])
    width, height = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (width <= side) & (height <= side) & (width > 0) & (height > 0)
    found, first = fits.any(0), fits.to(torch.uint8).argmax(0, keepdim=True)
    nearest = min(max(1.0, ratio[0]), ratio[1])
    width = torch.where(found, width.gather(0, first)[0], round(min(side, side * nearest)))
    height = torch.where(found, height.gather(0, first)[0], round(min(side, side / nearest)))
    top = torch.where(found, (uniform[20] * (side - height + 1)).floor(), ((side - height) / 2).floor())
    left = torch.where(found, (uniform[21] * (side - width + 1)).floor(), ((side - width) / 2).floor())
    return torch.stack([top, left, height, width]).to(torch.int64)


def resize_each(
    images: Tensor, crops: Tensor, mirrored: Tensor, side_px: int, interpolation: str
) -> Iterator[Tensor]:
    """(3, side_px, side_px) uint8 for each image: the crops one after the other, by torch's resize."""
    for image, (top, left, height, width), mirror in zip(images, crops.T.tolist(), mirrored.tolist(), strict=True):
        crop = image[:, top : top + height, left : left + width].unsqueeze(0)
        resized = functional.interpolate(crop, size=(side_px, side_px), mode=interpolation, antialias=True)[0]
        yield resized.flip(2) if mirror else resized


def resize_together(images: Tensor, crops: Tensor, mirrored: Tensor, side_px: int, interpolation: str) -> Tensor:
    """(b, 3, side_px, side_px) float32: the crops of a whole batch at once, each as rows · image · columnsᵀ.

    Antialiased resampling is separable, so an image has one matrix of weights for its rows and one for its
    columns, (side_px, side) each. In float32 also under autocast: half precision would be visible.
    """
    count, channels, side, _ = images.shape
    device = images.device
    top, left, height, width = crops.to(device)
    rows = _weights(top, height, torch.zeros_like(mirrored, device=device), side, side_px, interpolation)
    columns = _weights(left, width, mirrored.to(device), side, side_px, interpolation)
    with torch.autocast(device.type, enabled=False):
        narrow = torch.bmm(images.reshape(count, channels * side, side).float(), columns.transpose(1, 2))
        return torch.matmul(rows.unsqueeze(1), narrow.view(count, channels, side, side_px))


def _weights(start: Tensor, length: Tensor, mirrored: Tensor, side: int, side_px: int, interpolation: str) -> Tensor:
    """(b, side_px, side) weights of the pixels [start, start + length) in each of side_px places.

    Pixel j has filter((j + ½ - centre of place i) / stretch) in place i, and each place's weights sum to 1.
    """
    start, length = start.view(-1, 1, 1).float(), length.view(-1, 1, 1).float()
    place = (torch.arange(side_px, device=start.device) + 0.5).view(1, -1, 1)
    place = torch.where(mirrored.view(-1, 1, 1), side_px - place, place)
    pixel = torch.arange(side, device=start.device) + 0.5 - start
    step = length / side_px
    weights = FILTERS[interpolation]((pixel - place * step).abs() / step.clamp(min=1))
    weights = weights * ((pixel > 0) & (pixel < length))
    return weights / weights.sum(2, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys 1981 with a = -1/2, the value of Pillow and of torchvision's antialiased resize."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
