"""From files to batches: drawing the glyphs, decoded images, both paths to a batch, the doctor.

Ratios within one run, one torch thread unless stated otherwise. The classical path is what a loader's worker does for
each image: decode the JPEG, torchvision's RandomResizedCrop and flip, tensor, normalise; then collate.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from harness.data import datasets, doctor
from harness.data.datasets import Dataset
from harness.data.datasets._files import Row, from_files
from harness.data.images import Images, Originals, open_images, resized
from harness.data.loading import Augmentation, Each, batches
from harness.training.pipeline import AHEAD, IN_TURN, Pipeline
from tests.harness.data.datasets.sources import sop
from tests.performance._pictures import photograph

AIM_PATHS, AIM_BUILD, AIM_OPEN_S, AIM_OPEN_MB, AIM_DOCTOR_S = 2.5, 0.9, 1.0, 100, 60
AIM_WAITING, AIM_DECODING = 0.05, 0.95
STEP_S = 0.02  # of the device that stands in for a GPU
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Print the figures; `--images` and `--side` set the size of the file that is opened (at 256 px: 15 GB)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--scale", type=float, default=1.0, help="of the copy to examine, 1 has 120,053 files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        glyphs = draw(Path(folder))
        small_batches(glyphs, Path(folder))
        large_batches(Path(folder))
        ahead(Path(folder))
        build(Path(folder))
        open_prepared(options.images, options.side, Path(folder))
        examine(options.scale, Path(folder))


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


def large_batches(folder: Path) -> None:
    """Milliseconds per 224 px training image by three ways from the same files, in one thread."""
    dataset, count = photographs(folder / "photographs", 100), 100
    every, augmentation = np.arange(count), Augmentation(224, MEAN, STD, centre_share=0.875)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    cached, files = open_images(dataset, 256, folder), Originals(dataset)
    generator = torch.Generator().manual_seed(0)

    def batch(source: Images | Originals) -> torch.Tensor:
        return augmentation.train(source.batch(every), generator)

    ours, classical = milliseconds(lambda: batch(cached), 5) / count, milliseconds(lambda: batch(files), 3) / count
    bare = milliseconds(lambda: torch.stack([transform(dataset.read(i)) for i in every.tolist()]), 3) / count
    print(
        f"224 px training image: {ours:.2f} ms from decoded images, {classical:.2f} ms by the classical path "
        f"(torchvision alone {bare:.2f} ms): {min(classical, bare) / ours:.1f} times (aim: {AIM_PATHS} or more)"
    )
    tests = [augmentation.evaluate(source.batch(every[:20])) for source in (cached, files)]
    difference = (tests[0] - tests[1]).abs().mean().item() * 255 * np.mean(STD)
    print(f"  mean difference of the two in a pixel of a test image: {difference:.3f} of 255 (aim: under 1)")


def ahead(folder: Path) -> None:
    """Share of its time that a device of 20 ms a step waits for batches of 100, on both paths.

    The device stands in for a GPU: it takes its time and no processor, and crops decoded images itself.
    """
    dataset, count, cores = photographs(folder / "ahead", 400), 100, len(os.sched_getaffinity(0))
    augmentation, every = Augmentation(224, MEAN, STD, centre_share=0.875), np.arange(len(dataset))
    cached, files = open_images(dataset, 256, folder), Originals(dataset)
    cached.batch(every)  # from now on its file is in memory

    def used(source: Images | Originals, pipeline: Pipeline, steps: int) -> tuple[float, float]:
        """Return the seconds of all steps, and the mean that a step waits; nothing comes before the first."""

        def read(step: int, each: Each) -> object:
            chosen = np.random.default_rng(step).permutation(every)[:count]
            return augmentation.load(source.batch(chosen), torch.Generator().manual_seed(step), each)

        waits, began = [], time.perf_counter()
        asked = began
        for _ in pipeline.run(read, lambda batch: batch, range(steps), torch.device("cpu")):
            waits.append(time.perf_counter() - asked)
            time.sleep(STEP_S)
            asked = time.perf_counter()
        return asked - began, statistics.mean(waits[1:])

    gpu = Pipeline(AHEAD, cores)
    turn, best = (min(used(cached, pipeline, 15)[1] for _ in range(9)) for pipeline in (IN_TURN, gpu))
    print(
        f"a device of 20 ms a step, {cores} cores, decoded images: it waits {best * 1e3:.2f} ms, "
        f"{best / STEP_S:.1%} of a step (aim: {AIM_WAITING:.0%} or less); if each batch is read in its turn, "
        f"{turn * 1e3:.1f} ms"
    )
    with ThreadPoolExecutor(cores) as threads:
        decode = partial(augmentation.load, files.batch(every), torch.Generator(), threads.map)
        pairs = [(_seconds(decode, 0) / len(every), used(files, gpu, 8)[0] / (8 * count)) for _ in range(4)]
    alone, whole = map(min, zip(*pairs, strict=True))
    print(
        f"the same on the classical path: {1 / whole:.0f} images/s, decoding alone {1 / alone:.0f}: "
        f"{alone / whole:.2f} of it (aim: {AIM_DECODING} or more)"
    )


def build(folder: Path) -> None:
    """Images per second while building decoded images, against decoding and resizing alone on all cores."""
    dataset = photographs(folder / "more", 400)
    cores, every = len(os.sched_getaffinity(0)), range(len(dataset))
    with ProcessPoolExecutor(cores) as processes:
        list(processes.map(partial(_decode_and_resize, dataset), every[: 4 * cores]))
        alone = per_second(
            lambda: list(processes.map(partial(_decode_and_resize, dataset), every, chunksize=20)), len(dataset)
        )
    built = []
    for number in range(3):
        (folder / str(number)).mkdir()
        built.append(per_second(lambda n=number: open_images(dataset, 256, folder / str(n)), len(dataset)))
    best = max(built)
    print(
        f"building at 256 px on {cores} cores: {best:.0f} images/s; decoding and resizing alone, a process per "
        f"core, {alone:.0f}: {best / alone:.2f} of it (aim: {AIM_BUILD} or more)"
    )


def _decode_and_resize(dataset: Dataset, i: int) -> None:
    resized(dataset.read(i), 256)


def open_prepared(count: int, side: int, cache: Path) -> None:
    """Seconds and private memory to open decoded images that another process has built, and to read 20 batches."""
    grey = [Image.new("L", size, 128) for size in ((4 * side // 3, side), (side, 3 * side // 2), (side, side))]
    dataset = Dataset(
        name="prepared",
        keys=tuple(map(str, range(count))),
        labels=np.arange(count) // 5,
        class_names=tuple(map(str, range(count // 5 + 1))),
        split=np.full(count, "train"),
        read=lambda i: grey[i % len(grey)],
        source_stamp="1",
    )
    open_images(dataset, side, cache)
    before, began = private_mb(), time.perf_counter()
    images = open_images(dataset, side, cache)
    seconds = time.perf_counter() - began
    for batch in batches(dataset.labels, batch_size=100)[:20]:
        images.batch(batch)
    print(
        f"opening {count} decoded images of {side} px ({images.path.stat().st_size / 1e9:.1f} GB): {seconds:.2f} s "
        f"(aim: under {AIM_OPEN_S:.0f}), {private_mb() - before:.0f} MB of private memory after 20 batches "
        f"(aim: under {AIM_OPEN_MB})"
    )


def examine(scale: float, folder: Path) -> None:
    """Seconds to examine a made copy of Stanford Online Products whose files the page cache does not hold."""
    data = folder / "products"
    data.mkdir()
    sop.write(data, scale)
    os.sync()
    for file in datasets.index("sop", data).files or ():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    began = time.perf_counter()
    found = doctor.examine("sop", data, allow_nonstandard=True)
    seconds = time.perf_counter() - began
    count = sum(images for images, _ in found.counts.values())
    print(f"examining {count} files: {seconds:.1f} s (aim for 120,000: under {AIM_DOCTOR_S}); sound: {found.sound}")


def private_mb() -> float:
    """Memory of this process that no other can share: written pages, not those mapped from a file (page cache)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def photographs(folder: Path, count: int) -> Dataset:
    """JPEG files of 500 x 375 and 375 x 500 px with the detail of a photograph (about 60 kB)."""
    generator, rows = np.random.default_rng(0), []
    folder.mkdir()
    for i in range(count):
        width, height = (500, 375) if i % 2 else (375, 500)
        photograph(generator, width, height).save(folder / f"{i}.jpg", quality=85)
        rows.append(Row(f"{i}.jpg", "any", "train"))
    return from_files("photographs", folder, rows)


def per_second(call: Callable[[], object], count: int) -> float:
    return count / _seconds(call, 0)


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
