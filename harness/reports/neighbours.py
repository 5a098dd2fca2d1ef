"""The nearest neighbours of images: a table for programs, and a page to look at."""

import csv
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from harness.data.loose import open_image
from harness.reports import place
from harness.reports.formats.web import PARTS, template
from harness.reports.gallery import thumbnail

MOST_QUERIES = 50  # on the page
MOST_NEIGHBOURS = 10  # beside each query: what fits on a screen
SIDE_PX = 96


def write_table(path: Path, ids: Sequence[str], numbers: np.ndarray, similarities: np.ndarray) -> Path:
    """Write a line for each neighbour: id of the image, rank from 1, id of the neighbour, cosine similarity.

    numbers, similarities: (n, k), as `nearest` returns them.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("id", "rank", "neighbour", "similarity"))
    for id, row, values in zip(ids, numbers, similarities, strict=True):
        for rank, (number, value) in enumerate(zip(row, values, strict=True), 1):
            lines.writerow((id, rank, ids[number], f"{value:.6f}"))
    return place(path.parent, path.name, text.getvalue())


def write_page(
    path: Path,
    trial: str,
    table: str,
    ids: Sequence[str],
    images: Sequence[Path],
    numbers: np.ndarray,
    similarities: np.ndarray,
) -> Path:
    """Write a page that shows images and their neighbours, and needs no other file and no network.

    trial   id of the trial whose embedder found them
    table   name of the file with all of them
    images  the files of the images
    """

    @cache
    def picture(number: int) -> str:
        return thumbnail(open_image(images[number]), SIDE_PX)

    shown = min(numbers.shape[1], MOST_NEIGHBOURS)
    queries = np.unique(np.linspace(0, len(ids) - 1, MOST_QUERIES).astype(int)).tolist()
    strips = [
        {
            "id": ids[query],
            "image": picture(query),
            "neighbours": [
                {"id": ids[number], "image": picture(number), "similarity": f"{value:.3f}"}
                for number, value in zip(numbers[query, :shown].tolist(), similarities[query, :shown], strict=True)
            ],
        }
        for query in queries
    ]
    content = template("neighbours.html").render(
        trial=trial,
        left_out=_left_out(len(ids), len(queries), numbers.shape[1], shown, table),
        strips=strips,
        style=(PARTS / "style.css").read_text(encoding="utf-8"),
    )
    return place(path.parent, path.name, content)


def _left_out(images: int, queries: int, neighbours: int, shown: int, table: str) -> str:
    """Return the sentence that says how much of the table the page shows."""
    some = [f"{queries} of {images} images, evenly spaced in the order of their names"] if queries < images else []
    some += [f"the nearest {shown} of {neighbours} neighbours"] if shown < neighbours else []
    return f"Shown: {' and '.join(some)}; {table} has all." if some else f"{table} has the same as a table."
