"""Images that belong to no dataset: those below any folder, decoded like the images of a dataset."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness.data.datasets import DatasetError, PassedOver
from harness.data.datasets._decode import decode
from harness.data.datasets._walk import Walk
from harness.errors import printable


@dataclass(frozen=True)
class Found:
    """The image files below a folder.

    ids          their paths relative to the folder, with forward slashes, sorted
    files        the same files
    unreadable   a sentence for each file or folder that cannot be looked into
    passed_over  files that are no images, by reason
    """

    ids: tuple[str, ...]
    files: tuple[Path, ...]
    unreadable: tuple[str, ...]
    passed_over: tuple[PassedOver, ...]


def find_images(folder: Path) -> Found:
    """Find every image below a folder. Raise DatasetError if it is no folder or contains no images."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}")
    walk = Walk(str(folder))
    paths = walk.images()
    if not paths:
        why = [*map(str, walk.passed_over), *walk.unreadable]
        raise DatasetError(f"no images in {folder}" + "".join(f"; {reason}" for reason in why))
    files = tuple(folder / path for path in paths)
    return Found(tuple(map(printable, paths)), files, tuple(walk.unreadable), walk.passed_over)


def open_image(image: str | Path | Image.Image) -> Image.Image:
    """Return an image in 8-bit RGB or L, as `decode` reads those of a dataset. Raise DatasetError naming it."""
    name = getattr(image, "filename", "") or "the image" if isinstance(image, Image.Image) else image
    return decode(image, str(name))
