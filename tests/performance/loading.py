"""From files to batches: drawing the glyphs, building and opening decoded images, cropping batches.

Ratios within one run, one torch thread unless said otherwise. The classical path is what a loader's worker does for
each image: decode the JPEG, torchvision's RandomResizedCrop and flip, tensor, normalise; then collate.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from harness import datasets
from harness.datasets import Dataset
from harness.datasets._files import decode
from harness.loading import Augmentation, batches, open_images, square

AIM_PATHS, AIM_BUILD, AIM_OPEN_S, AIM_OPEN_MB = 2.5, 0.9, 1.0, 100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Print the figures; `--images` and `--side` set the size of the file that is opened (at 256 px: 11.8 GB)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--side", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        glyphs = draw(Path(folder))
        small_batches(glyphs, Path(folder))
        large_batches()
        build(Path(folder))
        open_prepared(options.images, options.side, Path(folder))


def draw(cache: Path) -> Dataset:
    """Seconds to draw the glyphs and to open them again."""
    began = time.perf_counter()
    glyphs = datasets.load("glyphs", cache=cache)
    drawn, began = time.perf_counter() - began, time.perf_counter()
    datasets.load("glyphs", cache=cache)
    opened = time.perf_counter() - began
    print(
        f"glyphs: {len(glyphs.class_names)} classes, {len(glyphs)} images; drawn in {drawn:.1f} s, "
        f"opened in {opened:.2f} s"
    )
    return glyphs


def small_batches(glyphs: Dataset, cache: Path) -> None:
    """Milliseconds of a training batch of 100 glyphs, and of torchvision image by image."""
    images = open_images(glyphs, 32, cache)
    augmentation, generator = Augmentation(32, MEAN, STD, flip=False), torch.Generator().manual_seed(0)
    plan = batches(glyphs.labels, batch_size=100)
    transform = v2.Compose([v2.RandomResizedCrop(32), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    ours = milliseconds(lambda: augmentation.train(images.batch(plan[0]), generator), 50)
    theirs = milliseconds(lambda: torch.stack([transform(image) for image in images.batch(plan[0])]), 5)
    print(
        f"batch of 100 at 32 px: {ours:.2f} ms; torchvision image by image {theirs:.1f} ms, {theirs / ours:.0f} times"
    )


def large_batches() -> None:
    """Milliseconds per 224 px training image, from decoded 256 px images and by the classical path."""
    files = photographs(24)
    stored = torch.stack([torch.from_numpy(square(Image.open(io.BytesIO(file)), 256)) for file in files])
    augmentation, generator = Augmentation(224, MEAN, STD), torch.Generator().manual_seed(0)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    ours = milliseconds(lambda: augmentation.train(stored, generator), 5) / len(files)
    theirs = milliseconds(lambda: torch.stack([transform(decode(io.BytesIO(file), "")) for file in files]), 5) / len(
        files
    )
    print(
        f"224 px training image: {ours:.2f} ms from decoded images, {theirs:.2f} ms by the classical path: "
        f"{theirs / ours:.1f} times (aim: {AIM_PATHS} or more)"
    )


def build(cache: Path) -> None:
    """Images per second while building decoded images, against decoding and resizing alone on all cores."""
    files = photographs(400)
    dataset = Dataset(
        name="photographs",
        keys=tuple(map(str, range(len(files)))),
        labels=np.zeros(len(files), dtype=np.int64),
        class_names=("any",),
        split=np.full(len(files), "train"),
        read=lambda i: decode(io.BytesIO(files[i]), str(i)),
        source_stamp="1",
    )
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as processes:
        list(processes.map(_decode_and_resize, files[:cores]))
        began = time.perf_counter()
        list(processes.map(_decode_and_resize, files, chunksize=20))
        alone = len(files) / (time.perf_counter() - began)
    began = time.perf_counter()
    open_images(dataset, 256, cache)
    built = len(files) / (time.perf_counter() - began)
    print(
        f"building at 256 px on {cores} cores: {built:.0f} images/s; decoding and resizing alone, a process per "
        f"core, {alone:.0f}: {built / alone:.2f} of it (aim: {AIM_BUILD} or more)"
    )


def _decode_and_resize(file: bytes) -> None:
    square(decode(io.BytesIO(file), ""), 256)


def open_prepared(count: int, side: int, cache: Path) -> None:
    """Seconds and private memory to open decoded images that another process has built, and to read 20 batches."""
    grey = Image.new("L", (side, side), 128)
    dataset = Dataset(
        name="prepared",
        keys=tuple(map(str, range(count))),
        labels=np.arange(count) // 5,
        class_names=tuple(map(str, range(count // 5 + 1))),
        split=np.full(count, "train"),
        read=lambda _: grey,
        source_stamp="1",
    )
    open_images(dataset, side, cache)
    before, began = private_mb(), time.perf_counter()
    images = open_images(dataset, side, cache)
    seconds = time.perf_counter() - began
    for batch in batches(dataset.labels, batch_size=100)[:20]:
        images.batch(batch)
    print(
        f"opening {count} decoded images of {side} px: {seconds:.2f} s (aim: under {AIM_OPEN_S:.0f}), "
        f"{private_mb() - before:.0f} MB of private memory after 20 batches (aim: under {AIM_OPEN_MB})"
    )


def private_mb() -> float:
    """Memory of this process that no other can share: written pages, not those mapped from a file (page cache)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def photographs(count: int) -> list[bytes]:
    """JPEG files of 500 x 400 px with the detail of a photograph (about 60 kB)."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (50, 62, 3), dtype=np.uint8)).resize((500, 400))
        grain = generator.normal(0, 6, (400, 500, 3))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The median over some rounds, after one to warm up."""
    call()
    return statistics.median(map(partial(_seconds, call), range(rounds))) * 1000


def _seconds(call: Callable[[], object], _: int) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
