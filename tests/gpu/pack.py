"""Pack photographs into one zip that is small enough to copy to another machine: `--data photographs.zip` takes it.

    python -m tests.gpu.pack PHOTOGRAPHS photographs.zip --mb 20

Images whose shorter side is longer than `--side` are made smaller, as JPEG files; all others stay as they are. Where
that is still too much, each class keeps its first images, as many as there is room for.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageOps

from harness.data import datasets

SIDE_PX = 256  # of what is decoded for networks of 224 px
ENTRY = 200  # bytes that a zip takes for each file, its name included


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the zip and print its contents; return 2 if there is nothing to pack."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.pack", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("out", type=Path, help="the zip to write")
    parser.add_argument("--mb", type=float, default=20.0, help="its largest size (default: 20)")
    parser.add_argument("--side", type=int, default=SIDE_PX, help=f"longest shorter side in px (default: {SIDE_PX})")
    options = parser.parse_args(arguments)
    try:
        dataset = datasets.load("folder", options.data)
    except datasets.DatasetError as error:
        print(f"cannot pack: {error}", file=sys.stderr)
        return 2
    classes: dict[str, list[Path]] = {name: [] for name in dataset.class_names}
    for file, label in zip(dataset.files, dataset.labels, strict=True):
        classes[dataset.class_names[label]].append(Path(file))
    with ThreadPoolExecutor() as threads:
        packed = {
            name: list(threads.map(lambda file: smaller(file, options.side), files))
            for name, files in classes.items()
        }
    kept = most_that_fit([[len(content) for _, content in files] for files in packed.values()], 1e6 * options.mb)
    with zipfile.ZipFile(options.out, "w") as archive:
        for name, files in packed.items():
            for number, (suffix, content) in enumerate(files[:kept]):
                archive.writestr(f"{name}/{number:05}{suffix}", content)
    count = sum(min(kept, len(files)) for files in packed.values())
    whole = sum(map(len, packed.values()))
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {count:,} of {whole:,} images, {len(packed)} classes, {size:.1f} MB")
    return 0


def smaller(file: Path, side_px: int) -> tuple[str, bytes]:
    """Return suffix and content of an image file, scaled down if its shorter side exceeds `side_px`."""
    with Image.open(file) as image:
        if min(image.size) <= side_px:
            return file.suffix.lower(), file.read_bytes()
        upright = ImageOps.exif_transpose(image).convert("RGB")
    share = side_px / min(upright.size)
    resized = upright.resize([round(share * extent) for extent in upright.size], Image.Resampling.LANCZOS)
    resized.save(content := io.BytesIO(), "JPEG", quality=90)
    return ".jpg", content.getvalue()


def most_that_fit(sizes: Sequence[Sequence[int]], room: float) -> int:
    """Return the most images per class for which the total is at most `room` bytes."""
    kept, total = 0, 0
    for kept in range(max(map(len, sizes))):
        total += sum(files[kept] + ENTRY for files in sizes if kept < len(files))
        if total > room:
            return kept
    return kept + 1


if __name__ == "__main__":
    sys.exit(main())
