"""Stanford Online Products (Oh Song et al. 2016): 120,053 photographs of 22,634 auctioned products.

`data` is the folder Stanford_Online_Products, or one that contains it. Ebay_train.txt and Ebay_test.txt are the
split. Oh Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import Row, listed
from harness.data.datasets._layout import absent, inside, lines, locate
from harness.data.datasets._standard import Standard
from harness.errors import first_few

NEEDS_DATA = True
STANDARD = Standard(
    title="Stanford Online Products",
    images=(59_551, 60_502),
    classes=(11_318, 11_316),
    numbers=(range(1, 11_319), range(11_319, 22_635)),
    look_alikes={120_053: "All images are there, in another split"},
    layout="Stanford_Online_Products/Ebay_train.txt, Stanford_Online_Products/Ebay_test.txt, and the photographs in "
    "Stanford_Online_Products/bicycle_final/ … toaster_final/",
    source="the archive Stanford_Online_Products.zip (2.9 GB) of the lifted-structure project of Stanford's vision "
    "and geometry lab; copies are on Kaggle and Hugging Face under the same name.",
)
LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
HEADER = ["image_id", "class_id", "super_class_id", "path"]


def load(data: Path, cache: Path, *, allow_nonstandard: bool = False) -> Dataset:
    """Load a standard copy of the dataset.

    allow_nonstandard: also run a copy of another size; its rows are marked `not Stanford Online Products`.

    Raises DatasetError if the copy is not the standard one or not complete; the message says what is wrong.
    """
    return STANDARD.guard(index(data), allow_nonstandard)


def index(data: Path) -> Dataset:
    """Read Ebay_train.txt and Ebay_test.txt, without looking at the photographs.

    Raises DatasetError if one of them is missing or not in the published format.
    """
    rows: list[Row] = []
    folders: list[Path] = []
    for split, name in LISTS.items():
        path = locate(data, name)
        if path is None:
            raise absent("sop", data, STANDARD, name)
        rows += [Row(key, number, split) for key, number in _lines(path)]
        folders.append(path.parent)
    return listed("sop", _images(folders[0], rows), rows, ks=(1, 10, 100, 1000))


def _lines(path: Path) -> list[tuple[str, str]]:
    """Return (path, class number) of every line after the header."""
    header, *rows = lines("sop", path) or [[]]
    bad = [" ".join(words) for words in rows if len(words) != 4 or not words[1].isdigit()]
    if header != HEADER or bad:
        what = f"{len(bad)} lines like {first_few(bad, 2)}" if bad else f"the first line {' '.join(header)!r}"
        raise DatasetError(f"sop: {path} is not in the published format `{' '.join(HEADER)}`: it has {what}")
    return [(words[3], words[1]) for words in rows]


def _images(lists: Path, rows: list[Row]) -> Path:
    """Return the folder that the listed paths start from: that of the lists, or images/ in it or next to it."""
    first = rows[0].key.partition("/")[0] if rows else ""
    for folder in (lists, inside(lists, "images"), lists.parent, inside(lists.parent, "images")):
        if folder and (folder / first).is_dir():
            return folder
    return lists
