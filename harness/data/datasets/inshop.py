"""In-Shop Clothes Retrieval (Liu et al. 2016): 52,712 photographs of 7,982 garments, queries apart from the gallery.

`data` is the folder of the copy (whatever its name and its case), or one that holds it. Test images are queries or
gallery as Eval/list_eval_partition.txt says: each query is looked up in the gallery alone.
Liu, Luo, Qiu, Wang, Tang: DeepFashion: Powering Robust Clothes Recognition and Retrieval, CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from harness import registry
from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, listed
from harness.data.datasets._layout import absent, inside, lines, locate
from harness.data.datasets._standard import Standard
from harness.errors import some

NEEDS_DATA = True
STANDARD = Standard(
    title="In-Shop Clothes",
    images=(25_882, 26_830),
    classes=(3_997, 3_985),
    roles={"query": 14_218, "gallery": 12_612},
    layout="Eval/list_eval_partition.txt, and the unpacked photographs in Img/img/MEN/ and Img/img/WOMEN/ (low "
    "resolution, the customary one) or Img/img_highres/ (high)",
    source="the In-shop Clothes Retrieval Benchmark of DeepFashion, kept by the multimedia laboratory of the Chinese "
    "University of Hong Kong in a shared drive; img.zip opens as it is, img_highres.zip with a password from them.",
)
LIST = "list_eval_partition.txt"
HEADER = ["image_name", "item_id", "evaluation_status"]
STATUSES = {"train": ("train", ""), "query": ("test", "query"), "gallery": ("test", "gallery")}
FOLDERS = {"low": "img", "high": "img_highres"}


def load(data: Path | None, cache: Path, *, resolution: str = "low", allow_nonstandard: bool = False) -> Dataset:
    """The dataset of a standard copy.

    resolution: "low", images of 256 px as in the literature, or "high", the originals.
    allow_nonstandard: run another size too; its rows are marked `not In-Shop Clothes`.

    Raises DatasetError when the copy is none or not complete, in words that say what is wrong with it.
    """
    return STANDARD.guard(index(data, resolution=resolution), allow_nonstandard)


def index(data: Path, *, resolution: str = "low") -> Dataset:
    """What list_eval_partition.txt says; the photographs are not looked at.

    Raises DatasetError where it, or the folder of photographs in that resolution, is missing, and where it was cut.
    """
    if resolution not in FOLDERS:
        raise DatasetError(f"inshop: {registry.unknown('resolution', resolution, FOLDERS)}")
    path = locate(data, LIST)
    if path is None:
        raise absent("inshop", data, STANDARD, LIST)
    rows, folder = _rows(path), {name: _images(data, path, name) for name in FOLDERS}
    if folder[resolution] is None:
        other = next((name for name in FOLDERS if folder[name]), None)
        what = f"{FOLDERS[resolution]}/ with the photographs of {resolution} resolution"
        if other:
            what += f" (but {FOLDERS[other]}/: the option resolution: {other} takes it, for tables of their own)"
        raise absent("inshop", data, STANDARD, what)
    return listed("inshop", folder[resolution], rows, ks=(1, 10, 20, 30))


def _rows(path: Path) -> list[Row]:
    """The lines of the partition: their number in the first line, the columns in the second, padded with spaces."""
    found = lines("inshop", path)
    if len(found) < 2 or len(found[0]) != 1 or not found[0][0].isdigit() or found[1] != HEADER:
        raise DatasetError(f"inshop: {path} does not begin with a number of images and `{' '.join(HEADER)}`")
    announced, rows = int(found[0][0]), found[2:]
    if bad := [" ".join(words) for words in rows if len(words) != 3 or words[2] not in STATUSES]:
        raise DatasetError(
            f"inshop: {len(bad)} lines of {path} are not `image item train|query|gallery` ({some(bad, 2)})"
        )
    if len(rows) != announced:
        raise DatasetError(f"inshop: {path} announces {announced} images and lists {len(rows)}: it was cut short")
    return [Row(name, item, *STATUSES[status], file=name.partition("/")[2]) for name, item, status in rows]


def _images(data: Path, path: Path, resolution: str) -> Path | None:
    """The folder that holds MEN/ and WOMEN/ in a resolution."""
    name = FOLDERS[resolution]
    for above in (path.parent.parent, path.parent, data):
        for names in (("Img", name), (name,), ("Img", name, name), (name, name)):
            folder = inside(above, *names)
            if folder and any((folder / part).is_dir() for part in ("MEN", "WOMEN")):
                return folder
    return None
