"""Copies of the four benchmarks with made photographs: their files, formats and quirks, at any size.

    python -m tests.harness.data.datasets.fixtures cub200 FOLDER --scale 0.01

writes a copy with a hundredth of the classes and images (at least four classes with four images in each split; the
number of images of a class stays near the original's). At scale 1 the numbers are those of the standard copy.
"""

import argparse
import io
import zlib
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from PIL import Image

from harness.data import datasets

SIZES = ((48, 36), (36, 48), (40, 40), (56, 32))  # landscape, portrait, square, wide
GREY_EVERY = 11
RESOURCE_FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", choices=[name for name in datasets.names() if datasets.standard(name)])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=0.01)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        import_module(f"tests.harness.data.datasets.sources.{options.dataset}").write(options.folder, options.scale)
    )


def counts(name: str, split: int, scale: float) -> list[int]:
    """How many images each class of a split (0: training, 1: test) has at a scale; at 1 as many as the benchmark."""
    standard = datasets.standard(name)
    assert standard is not None
    classes = max(4, round(standard.classes[split] * scale))
    images = max(4 * classes, round(standard.images[split] * scale))
    return [images // classes + (c < images % classes) for c in range(classes)]


def photograph(path: Path, class_name: str, number: int) -> None:
    """Write a JPEG file: coloured by its class, of a size by its number, now and then grey, and no two alike."""
    if number == 0 or not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(path.name, class_name, number))


def content(name: str, class_name: str, number: int) -> bytes:
    """A JPEG image with `name` in a comment, so that no two files are the same."""
    start, rest = _jpeg(
        class_name, SIZES[number % len(SIZES)], zlib.crc32(f"{class_name} {name}".encode()) % GREY_EVERY == 0
    )
    comment = f"{class_name} {name}".encode()
    return start + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + rest


@lru_cache(maxsize=64)
def _jpeg(class_name: str, size: tuple[int, int], grey: bool) -> tuple[bytes, bytes]:
    """The first two bytes of a JPEG file and the others."""
    colour = tuple(zlib.crc32(class_name.encode()).to_bytes(4, "big")[:3])
    image = Image.blend(Image.new("RGB", size, colour), Image.effect_noise(size, 60).convert("RGB"), 0.3)
    file = io.BytesIO()
    image.convert("L" if grey else "RGB").save(file, "JPEG", quality=85)
    return file.getvalue()[:2], file.getvalue()[2:]


def numbered(name: str, scale: float, starts: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(class number, images) of the training and the test classes, numbered from these starts."""
    for split, start in enumerate(starts):
        yield from enumerate(counts(name, split, scale), start)


def fork(folder: Path, name: str) -> None:
    """What macOS leaves beside a file: not an image, whatever its name ends in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"._{name}").write_bytes(RESOURCE_FORK)


if __name__ == "__main__":
    main()
