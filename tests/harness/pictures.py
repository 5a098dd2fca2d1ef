"""Datasets of made images, for the tests of what reads them."""

import numpy as np
import torch
from PIL import Image

from harness.data.datasets import Dataset, DatasetError


def noise(count, side, seed=0):
    """(count, 3, side, side) uint8 with structure at several scales, like photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 8 + 1, side // 8 + 1, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (smooth + 30 * torch.randn(count, 3, side, side, generator=generator)).clamp(0, 255).to(torch.uint8)


def to_image(pixels, size=None):
    """(3, h, w) uint8 as an image, or its upper left corner of `size` (width, height)."""
    width, height = size or (None, None)
    return Image.fromarray(pixels[:, :height, :width].permute(1, 2, 0).contiguous().numpy())


def class_folders(folder, classes, images, first=0, suffix=".png", shade=0, side=16):
    """`folder`, with a folder for each class in it: `classes` of them from number `first`, a colour each, noisy."""
    for c in range(first, first + classes):
        (folder / f"c{c:02d}").mkdir(parents=True, exist_ok=True)
        for i in range(images):
            colour = np.array([53 * c, 97 * c + shade, 151 * c]) % 256
            pixels = colour + np.random.default_rng([c, i]).normal(0, 25, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype("u1")).save(folder / f"c{c:02d}" / f"{i}{suffix}")
    return folder


class Pictures:
    """A dataset of n images whose readings are counted; some cannot be read."""

    def __init__(self, count=100, size=(12, 10), broken=(), stamp="1", images=None):
        self.read_keys, self.broken, self.size, self.images = [], broken, size, images
        keys = tuple(f"{i}.png" for i in range(count))
        self.dataset = Dataset(
            name="toy",
            keys=keys,
            labels=np.arange(count) // 2,
            class_names=tuple(map(str, range(count // 2))),
            split=np.array(["train"] * count),
            read=self.read,
            source_stamp=stamp,
        )

    def read(self, i):
        self.read_keys.append(i)
        if i in self.broken:
            raise DatasetError(f"{i}.png: truncated")
        return Image.new("RGB", self.size, (i, 2 * i, 7)) if self.images is None else self.images[i]
