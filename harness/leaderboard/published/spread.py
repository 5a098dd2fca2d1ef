"""How far published numbers for the same thing are apart.

A cell is what several publications may give a number for: dataset, backbone, dimension, arm and metric. All sources
of a publication count as one, because a README that repeats its paper confirms nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError, unknown
from harness.leaderboard.published import Published, plain, publication, short

METRIC = "R@1"  # the one that nearly every publication gives
ROUNDING = 0.05  # points; most publications print one decimal
COLUMNS = ("dataset", "backbone", "dim", "arm", "metric", "lowest", "highest", "spread", "publications", "sources")


@dataclass(frozen=True)
class Cell:
    """The published numbers for one thing.

    numbers  source, fraction, and what is known of images, batch and protocol
    """

    dataset: str
    backbone: str
    dim: int | None
    arm: str
    metric: str
    numbers: tuple[tuple[str, float, str], ...]

    @property
    def loss(self) -> str:
        return self.arm.partition("+")[0]

    @property
    def spread(self) -> float:
        """The highest minus the lowest number, in points."""
        scores = [score for _, score, _ in self.numbers]
        return round(100 * (max(scores) - min(scores)), 2)

    @property
    def publications(self) -> int:
        return len({publication(source) for source, *_ in self.numbers})

    @property
    def disagrees(self) -> bool:
        """Whether several publications give numbers that differ by more than rounding."""
        return self.publications > 1 and self.spread > ROUNDING

    @property
    def row(self) -> tuple[object, ...]:
        """The values of `COLUMNS`, sources with the lowest number first. A single number has no spread."""
        numbers = sorted(self.numbers, key=lambda number: number[1])
        lowest, highest = decimal(100 * numbers[0][1]), decimal(100 * numbers[-1][1])
        spread = decimal(self.spread) if len(numbers) > 1 else ""
        sources = [
            f"{short(source)} {decimal(100 * score)}" + (f" ({about})" if about else "")
            for source, score, about in numbers
        ]
        where = (self.dataset, self.backbone, self.dim, self.arm, self.metric)
        return *where, lowest, highest, spread, self.publications, "; ".join(sources)


def cells(rows: Iterable[Published]) -> list[Cell]:
    """Return all cells in the order of dataset, backbone, dimension, arm and metric."""
    numbers: dict[tuple[Any, ...], list[tuple[str, float, str]]] = defaultdict(list)
    for row in rows:
        for metric, score in row.values.items():
            numbers[row.dataset, row.backbone, row.dim or 0, row.arm, metric].append((row.source, score, row.about))
    return [
        Cell(dataset, backbone, dim or None, arm, metric, tuple(found))
        for (dataset, backbone, dim, arm, metric), found in sorted(numbers.items())
    ]


def select(known: Sequence[Cell], **wanted: str | None) -> list[Cell]:
    """Return the cells with the wanted dataset, backbone, dim, loss and metric, in any spelling; None wants all.

    Raises UserError with the nearest names for one that no cell has.
    """
    selected = list(known)
    for name, value in wanted.items():
        if value is not None:
            names = {str(own) for cell in known if (own := getattr(cell, name)) is not None}
            if plain(value) not in map(plain, names):
                raise UserError(unknown(f"{name} in published numbers", value, names))
            selected = [cell for cell in selected if plain(str(getattr(cell, name))) == plain(value)]
    return selected


def summary(selected: Sequence[Cell]) -> Iterator[str]:
    """Yield sentences on how often and how far publications disagree."""
    shared = [cell for cell in selected if cell.publications > 1]
    if not shared:
        yield "No two publications give a number for the same thing here."
        return
    widest = max(shared, key=lambda cell: cell.spread)
    dim = "unknown" if widest.dim is None else widest.dim
    yield (
        f"{sum(cell.disagrees for cell in shared)} of the {len(shared)} cells that two or more publications share "
        f"disagree by more than rounding ({ROUNDING} points). Largest spread: {decimal(widest.spread)} points, "
        f"{widest.metric} of {widest.arm} on {widest.dataset} with {widest.backbone}, {dim} dimensions."
    )
    if alone := sum(cell.publications == 1 and cell.spread > ROUNDING for cell in selected):
        yield f"In {alone} more, the sources of a single publication differ."


def decimal(value: float) -> str:
    """Return a number with one decimal, or two where the second is not 0."""
    return f"{value:.2f}".removesuffix("0")
