"""From images to batches: choose the images of each step, and crop, flip and normalise them.

`batches` chooses the images of each step of an epoch. `Augmentation` prepares them for a network: decoded images as
whole batches on their device, or, on the classical path, files one by one with torchvision.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from harness import registry
from harness.data.images import Unread, host_bytes

SMALL_PX = 40  # up to this side, matrix products crop a batch faster than single images, even on a CPU core

Each = Callable[[Callable[[int], None], Iterable[int]], Iterable[Any]]  # like `map`


@dataclass(frozen=True)
class Cropped:
    """Images of the classical path, read, resized and cropped: (b, 3, side_px, side_px) uint8.

    A rank may have read only some of the `total` images.
    """

    pixels: Tensor
    total: int

    def __len__(self) -> int:
        return self.total


Batch = Tensor | Sequence[Tensor] | Unread | Cropped


def batches(
    labels: np.ndarray,
    *,
    batch_size: int,
    sampler: str = "balanced",
    examples_per_class: int = 5,
    seed_of_epoch: int | Sequence[int] = 0,
) -> list[np.ndarray]:
    """Return the batches of one epoch: ⌊n / batch_size⌋ arrays of (batch_size,) indices into `labels`.

    labels: (n,) class of each training image.
    sampler: "shuffle" cuts a random order into batches and drops the incomplete last one. "balanced" puts
        batch_size / examples_per_class classes with examples_per_class images each into every batch. In an epoch all
        classes occur equally often (to within one). A class repeats an image only after all of its images, and within
        a batch only if it has fewer than examples_per_class.
    seed_of_epoch: determines the batches.

    Raises ValueError if the sizes do not fit the data or each other.
    """
    if not 1 <= batch_size <= len(labels):
        raise ValueError(f"batch_size = {batch_size}, expected 1 to {len(labels)}, the number of training images")
    generator = np.random.default_rng(seed_of_epoch)
    steps = len(labels) // batch_size
    if sampler == "shuffle":
        order = generator.permutation(len(labels))
        return list(order[: steps * batch_size].reshape(steps, batch_size))
    if sampler != "balanced":
        raise registry.RegisterError(registry.unknown("sampler", sampler, ("balanced", "shuffle")))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    if examples_per_class < 1 or batch_size % examples_per_class:
        raise ValueError(f"batch_size = {batch_size} is not a multiple of examples_per_class = {examples_per_class}")
    classes_per_batch = batch_size // examples_per_class
    if classes_per_batch > len(members):
        raise ValueError(
            f"batch_size = {batch_size} with {examples_per_class} examples per class needs {classes_per_batch} "
            f"classes; there are {len(members)} to train on"
        )
    images = [_draws(indices, examples_per_class, generator) for indices in members]
    classes = _draws(np.arange(len(members)), classes_per_batch, generator)
    return [np.concatenate([next(images[c]) for c in next(classes)]) for _ in range(steps)]


def _draws(items: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield endless draws of `size` items; all items are drawn once before any is repeated.

    If a shuffled round ends within a draw, the next round starts with items that the draw does not contain yet.
    """
    waiting = items[:0]
    while True:
        while len(waiting) < size:
            fresh = generator.permutation(items)
            if len(waiting):
                held = np.isin(fresh, waiting)
                fresh = np.concatenate([waiting, fresh[~held], fresh[held]])
            waiting = fresh
        yield waiting[:size]
        waiting = waiting[size:]


@dataclass(frozen=True)
class Augmentation:
    """Prepares batches of uint8 images as normalised float32, on their device.

    A batch is a tensor (b, 3, h, w), a list of tensors (3, h, w), or unread images, which go through torchvision's
    own transforms one by one; `load` may do so beforehand. Resampling is antialiased as in torchvision: a triangle
    ("bilinear") or Keys cubic ("bicubic") filter, stretched by the factor of reduction.

    side_px: side of the square output images.
    mean, std: per channel, for pixel values in [0, 1].
    crop_scale: area of the training crop as a share of the image's, from and to.
    crop_ratio: its width / height, from and to (drawn log-uniformly).
    flip: mirror half of the training images; wrong for characters (`Dataset.mirrored`).
    centre_share: in evaluation, the side of the central crop as a share of the shorter side of the resized image:
        1 shows all of a square, 0.875 is torchvision's Resize(256) and CenterCrop(224).
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
            raise registry.RegisterError(registry.unknown("interpolation", self.interpolation, FILTERS))
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale = {self.crop_scale}, expected 0 < from <= to <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio = {self.crop_ratio}, expected 0 < from <= to")
        if not 0 < self.centre_share <= 1:
            raise ValueError(f"centre_share = {self.centre_share}, expected 0 < share <= 1")

    def load(self, images: Batch, generator: torch.Generator | None = None, each: Each = map) -> Batch:
        """Read and crop unread images, for `train` with the same generator, or for `evaluate` without one.

        Other batches are returned unchanged, and a decoder on a GPU leaves the cropping to `train` and `evaluate`.
        `each` calls a function for every image of the batch, like `map`, and may do so in threads. Raises
        DatasetError naming an image that cannot be read.
        """
        if not isinstance(images, Unread):
            return images
        if images.decoder != "pillow":
            return _decoded(images, each)
        uniform = None if generator is None else _uniform(images, generator).cpu()
        part = self._part(len(images))
        pixels = host_bytes((len(part), 3, self.side_px, self.side_px), images.device)
        rows = pixels.numpy()  # any thread may write to it, also while this one is in inference mode

        def read(row: int) -> None:
            image = images.read(part[row])
            rows[row] = self.centred(image) if uniform is None else self._cropped(image, uniform[:, part[row]])

        for _ in each(read, range(len(part))):
            continue
        return Cropped(pixels.to(images.device, non_blocking=True), len(images))

    def train(self, images: Batch, generator: torch.Generator) -> Tensor:
        """Apply a random resized crop and flip to b uint8 images: (b, 3, side_px, side_px) float32.

        generator: a CPU generator gives the same crops on every device.
        The crops are torchvision's RandomResizedCrop: area and ratio are drawn up to ten times until the crop fits,
        otherwise the largest central crop of a permitted ratio is used.
        """
        images = self.load(images, generator)
        if isinstance(images, Cropped):
            return self._normalised(self._together(images))
        assert not isinstance(images, Unread)
        uniform = _uniform(images, generator)
        mirrored = uniform[22] < (0.5 if self.flip else 0)
        height, width = _sizes(images, uniform.device)
        crops = random_crops(uniform[:22], height, width, self.crop_scale, self.crop_ratio)
        # Per image of 224 px the matrix products take a CPU core 3 ms and torch's own 8-bit resize 0.2 ms; for
        # images of 32 px, and on a GPU for all, the call per image costs more than its arithmetic.
        small = isinstance(images, Tensor) and max(images.shape[2:]) <= SMALL_PX
        if images[0].device.type != "cpu" or small:
            frame = images if isinstance(images, Tensor) else framed(images)
            return self._normalised(resize_together(frame, crops, mirrored, self.side_px, self.interpolation))
        batch = torch.empty(len(images), 3, self.side_px, self.side_px)
        for row, crop in zip(
            batch, resize_each(images, crops, mirrored, self.side_px, self.interpolation), strict=True
        ):
            self._normalised(crop, out=row)  # while it is in the core's cache: twice as fast as later
        return batch

    def evaluate(self, images: Batch) -> Tensor:
        """Resize and centrally crop b uint8 images: (b, 3, side_px, side_px) float32."""
        images = self.load(images)
        if isinstance(images, Cropped):
            return self._normalised(self._together(images))
        assert not isinstance(images, Unread)
        if isinstance(images, Tensor):
            return self._normalised(self._centre(images))
        return self._normalised(torch.cat([self._centre(image.unsqueeze(0)) for image in images]))

    @property
    def resized_px(self) -> int:
        """Return the shorter side before the central crop."""
        return round(self.side_px / self.centre_share)

    def _centre(self, images: Tensor) -> Tensor:
        """Resize (b, 3, h, w) uint8 if necessary and crop its centre: (b, 3, side_px, side_px)."""
        height, width = images.shape[2:]
        resized = [self.resized_px * extent // min(height, width) for extent in (height, width)]
        if resized != [height, width]:
            pixels = images if images.device.type == "cpu" else images.float()  # CUDA has no 8-bit resize
            images = functional.interpolate(pixels, size=resized, mode=self.interpolation, antialias=True)
        top, left = (round((extent - self.side_px) / 2) for extent in resized)
        return images[:, :, top : top + self.side_px, left : left + self.side_px]

    def _cropped(self, image: Image.Image, uniform: Tensor) -> Tensor:
        """Return a training image of the classical path, (3, side_px, side_px) uint8, from 23 uniform numbers."""
        vision, mode = _torchvision(self.interpolation)
        crop = random_crops(uniform[:22, None], image.height, image.width, self.crop_scale, self.crop_ratio)
        image = vision.resized_crop(image, *crop[:, 0].tolist(), [self.side_px] * 2, mode, antialias=True)
        return vision.pil_to_tensor(vision.hflip(image) if self.flip and uniform[22] < 0.5 else image)

    def centred(self, image: Image.Image) -> Tensor:
        """Return a test image of the classical path, from one in RGB: (3, side_px, side_px) uint8."""
        vision, mode = _torchvision(self.interpolation)
        resized = vision.resize(image, [self.resized_px], mode, antialias=True)
        return vision.pil_to_tensor(vision.center_crop(resized, [self.side_px] * 2))

    def _part(self, count: int) -> range:
        """Return which of `count` images of the classical path this process reads: all."""
        return range(count)

    def _together(self, images: Cropped) -> Tensor:
        """Return the pixels of all images of a batch, some of which other processes may have read."""
        return images.pixels

    def _normalised(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Return (pixel / 255 - mean) / std in float32, for pixels in [0, 255]; clamp a cubic filter's overshoot."""
        mean, std = _as_tensors(tuple(self.mean), tuple(self.std), pixels.device)
        if pixels.is_floating_point():
            pixels = pixels.clamp_(0, 255)
        return torch.sub(pixels, mean, out=out).div_(std)


@lru_cache
def _as_tensors(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Return (2, 3, 1, 1) for pixels in [0, 255]; cached, because a copy to a GPU in every step makes it wait."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        return 255 * torch.tensor([mean, std], device=device).view(2, -1, 1, 1)


def gpu_decoder_problem(device: torch.device) -> str | None:
    """Return why `device` cannot decode JPEG files; None if it can: it has just decoded a small one."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, and the trial runs on {device}"
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    try:
        _decode_jpegs([small.getvalue()], device)
    except (ImportError, RuntimeError) as error:
        return f"torchvision cannot decode on this GPU ({str(error).splitlines()[0]})"
    return None


def _decoded(images: Unread, each: Each) -> list[Tensor]:
    """Decode each image of a batch on its device, or by Pillow where that fails: (3, h, w) uint8 on the device."""
    files: dict[int, bytes] = {}
    decoded: dict[int, Tensor] = {}

    def read(place: int) -> None:
        if (content := images.jpeg(place)) is not None:
            files[place] = content

    def decode(places: Sequence[int]) -> None:
        with suppress(RuntimeError):
            decoded.update(zip(places, _decode_jpegs([files[i] for i in places], images.device), strict=True))

    def decode_by_pillow(place: int) -> None:
        pixels = np.array(images.read(place)).transpose(2, 0, 1)
        decoded[place] = torch.from_numpy(np.ascontiguousarray(pixels)).to(images.device)

    def run(function: Callable[[int], None], places: Iterable[int]) -> None:
        for _ in each(function, places):
            continue

    run(read, range(len(images)))
    decode(list(files))
    if not decoded:  # the error names no image, so each is tried alone
        for place in files:
            decode([place])
    run(decode_by_pillow, [place for place in range(len(images)) if place not in decoded])
    return [decoded[place] for place in range(len(images))]


def _decode_jpegs(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Decode JPEG files to RGB by torchvision, each (3, h, w) uint8 on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    content = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    decoded = decode_jpeg(content, mode=ImageReadMode.RGB, device=device) if content else []
    assert isinstance(decoded, list)
    return decoded


@lru_cache
def _torchvision(interpolation: str):
    """Return torchvision's transforms and its name of an interpolation; only the classical path needs them."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    return functional, InterpolationMode(interpolation)


def _uniform(images: Batch, generator: torch.Generator) -> Tensor:
    """Return the numbers of a batch's crops and flips, (23, b) in [0, 1), where the generator is."""
    return torch.rand(23, len(images), generator=generator, dtype=torch.float64, device=generator.device)


def _sizes(images: Tensor | Sequence[Tensor], device: torch.device) -> Tensor:
    """Return heights and widths (2, b), or (2, 1) if all are equal."""
    sizes = [images.shape[2:]] if isinstance(images, Tensor) else [image.shape[1:] for image in images]
    sizes = torch.tensor(sizes, dtype=torch.float64).T
    return sizes.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else sizes


def random_crops(
    uniform: Tensor, height: Tensor | int, width: Tensor | int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Return top, left, height and width (4, b), in whole pixels, of crops in images of `height` × `width`.

    height, width: of all images, or (b,) of each.
    uniform: (22, b) numbers in [0, 1), the only source of randomness.
    """
    height, width = (torch.as_tensor(x, dtype=torch.float64, device=uniform.device) for x in (height, width))
    log_from, log_to = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[:10])
    shape = torch.exp(log_from + (log_to - log_from) * uniform[10:20])
    crop_width, crop_height = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (crop_width <= width) & (crop_height <= height) & (crop_width > 0) & (crop_height > 0)
    valid, first = fits.any(0), fits.to(torch.uint8).argmax(0, keepdim=True)
    nearest = (width / height).clamp(*ratio)
    crop_width = torch.where(valid, crop_width.gather(0, first)[0], torch.minimum(width, height * nearest).round())
    crop_height = torch.where(valid, crop_height.gather(0, first)[0], torch.minimum(height, width / nearest).round())
    top = torch.where(valid, uniform[20] * (height - crop_height + 1), (height - crop_height) / 2).floor()
    left = torch.where(valid, uniform[21] * (width - crop_width + 1), (width - crop_width) / 2).floor()
    return torch.stack([top, left, crop_height, crop_width]).to(torch.int64)


def resize_each(
    images: Tensor | Sequence[Tensor], crops: Tensor, mirrored: Tensor, side_px: int, interpolation: str
) -> Iterator[Tensor]:
    """Yield the crop of each image, (3, side_px, side_px) uint8, by torch's resize."""
    for image, (top, left, height, width), mirror in zip(images, crops.T.tolist(), mirrored.tolist(), strict=True):
        crop = image[:, top : top + height, left : left + width].unsqueeze(0)
        resized = functional.interpolate(crop, size=(side_px, side_px), mode=interpolation, antialias=True)[0]
        yield resized.flip(2) if mirror else resized


def framed(images: Sequence[Tensor]) -> Tensor:
    """Return images of several sizes as (b, 3, h, w), each in the upper left corner of a frame that fits them all."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    frame = images[0].new_zeros(len(images), 3, height, width)
    for slot, image in zip(frame, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return frame


def resize_together(images: Tensor, crops: Tensor, mirrored: Tensor, side_px: int, interpolation: str) -> Tensor:
    """Return the crops of a batch (b, 3, h, w), (b, 3, side_px, side_px) float32, as rows · image · columnsᵀ.

    Antialiased resampling is separable, so an image has one matrix of weights for its rows, (side_px, h), and one for
    its columns, (side_px, w). Computed in float32 even under autocast, since half precision would be visible.
    """
    count, channels, height, width = images.shape
    device = images.device
    top, left, crop_height, crop_width = crops.to(device)
    upright = torch.zeros_like(mirrored, device=device)
    rows = _weights(top, crop_height, upright, height, side_px, interpolation)
    columns = _weights(left, crop_width, mirrored.to(device), width, side_px, interpolation)
    with torch.autocast(device.type, enabled=False):
        narrow = torch.bmm(images.reshape(count, channels * height, width).float(), columns.transpose(1, 2))
        return torch.matmul(rows.unsqueeze(1), narrow.view(count, channels, height, side_px))


def _weights(start: Tensor, length: Tensor, mirrored: Tensor, side: int, side_px: int, interpolation: str) -> Tensor:
    """Return weights (b, side_px, side) of the pixels [start, start + length) in each of side_px outputs.

    Pixel j has the weight filter((j + ½ - centre of output i) / stretch) in output i; weights of an output sum to 1.
    """
    start, length = start.view(-1, 1, 1).float(), length.view(-1, 1, 1).float()
    output = (torch.arange(side_px, device=start.device) + 0.5).view(1, -1, 1)
    output = torch.where(mirrored.view(-1, 1, 1), side_px - output, output)
    pixel = torch.arange(side, device=start.device) + 0.5 - start
    step = length / side_px
    weights = FILTERS[interpolation]((pixel - output * step).abs() / step.clamp(min=1))
    weights = weights * ((pixel > 0) & (pixel < length))
    return weights / weights.sum(2, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Return Keys' cubic filter (1981) with a = -1/2, as in Pillow and torchvision's antialiased resize."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
