"""In-Shop Clothes Retrieval (Liu et al. 2016): 52,712 photographs of 7,982 garments, with queries and a gallery.

`data` is the folder of the copy (of any name and case), or one that contains it. Test images are queries or gallery
as in Eval/list_eval_partition.txt: queries search only in the gallery.
Liu, Luo, Qiu, Wang, Tang: DeepFashion: Powering Robust Clothes Recognition and Retrieval, CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from harness import registry
from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, listed
from harness.data.datasets._layout import absent, inside, lines, locate
from harness.data.datasets._standard import Standard
from harness.errors import first_few

NEEDS_DATA = True
STANDARD = Standard(
    title="In-Shop Clothes",
    images=(25_882, 26_830),
    classes=(3_997, 3_985),
    roles={"query": 14_218, "gallery": 12_612},
    layout="Eval/list_eval_partition.txt, and the unpacked photographs in Img/img/MEN/ and Img/img/WOMEN/ (low "
    "resolution, the usual one) or Img/img_highres/ (high)",
    source="the In-shop Clothes Retrieval Benchmark of DeepFashion, kept by the multimedia laboratory of the Chinese "
    "University of Hong Kong in a shared drive; img.zip needs no password, img_highres.zip needs one from them.",
)
LIST = "list_eval_partition.txt"
HEADER = ["image_name", "item_id", "evaluation_status"]
STATUSES = {"train": ("train", ""), "query": ("test", "query"), "gallery": ("test", "gallery")}
FOLDERS = {"low": "img", "high": "img_highres"}


def load(data: Path, cache: Path, *, resolution: str = "low", allow_nonstandard: bool = False) -> Dataset:
    """Load a standard copy of the dataset.

    resolution: "low", images of 256 px as in the literature, or "high", the originals.
    allow_nonstandard: also run a copy of another size; its rows are marked `not In-Shop Clothes`.

    Raises DatasetError if the copy is not the standard one or not complete; the message says what is wrong.
    """
    return STANDARD.guard(index(data, resolution=resolution), allow_nonstandard)


def index(data: Path, *, resolution: str = "low") -> Dataset:
    """Read list_eval_partition.txt, without looking at the photographs.

    Raises DatasetError if the list or the folder of photographs in this resolution is missing, or the list is cut
    off.
    """
    if resolution not in FOLDERS:
        raise DatasetError(f"inshop: {registry.unknown('resolution', resolution, FOLDERS)}")
    path = locate(data, LIST)
    if path is None:
        raise absent("inshop", data, STANDARD, LIST)
    rows, folder = _rows(path), {name: _images(data, path, name) for name in FOLDERS}
    photographs = folder[resolution]
    if photographs is None:
        other = next((name for name in FOLDERS if folder[name]), None)
        what = f"{FOLDERS[resolution]}/ with the photographs of {resolution} resolution"
        if other:
            what += f" (but {FOLDERS[other]}/: the option resolution: {other} uses it, in separate tables)"
        raise absent("inshop", data, STANDARD, what)
    return listed("inshop", photographs, rows, ks=(1, 10, 20, 30))


def _rows(path: Path) -> list[Row]:
    """Return the lines of the partition, whose first line is their number and whose second names the columns."""
    table = lines("inshop", path)
    if len(table) < 2 or len(table[0]) != 1 or not table[0][0].isdigit() or table[1] != HEADER:
        raise DatasetError(f"inshop: {path} does not begin with a number of images and `{' '.join(HEADER)}`")
    announced, rows = int(table[0][0]), table[2:]
    if bad := [" ".join(words) for words in rows if len(words) != 3 or words[2] not in STATUSES]:
        raise DatasetError(
            f"inshop: {len(bad)} lines of {path} are not `image item train|query|gallery` ({first_few(bad, 2)})"
        )
    if len(rows) != announced:
        raise DatasetError(f"inshop: {path} announces {announced} images and lists {len(rows)}: it was cut short")
    return [Row(name, item, *STATUSES[status], file=name.partition("/")[2]) for name, item, status in rows]


def _images(data: Path, path: Path, resolution: str) -> Path | None:
    """Return the folder that contains MEN/ and WOMEN/ in a resolution; None if there is none."""
    name = FOLDERS[resolution]
    for above in (path.parent.parent, path.parent, data):
        for names in (("Img", name), (name,), ("Img", name, name), (name, name)):
            folder = inside(above, *names)
            if folder and any((folder / part).is_dir() for part in ("MEN", "WOMEN")):
                return folder
    return None
