"""What the rows of a block say against each other, metric by metric: which differ, which may be best, how sure.

A column is one metric of one block. In each column there are two families of tests, corrected by Holm apart: every
variant against its own baseline, and the observed best against every other trained row. Nothing is corrected across
columns, and the caption says so. Marks need five seeds; what has fewer is neither tested nor marked.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.leaderboard.statistics import (
    LEAST_BOOTSTRAP_SEEDS,
    LEAST_SEEDS,
    bootstrap_interval,
    class_bootstrap,
    holm,
    least_detectable,
    paired_difference,
    places,
    rank_intervals,
    seeds_needed,
    variance_shares,
)
from harness.runs.outcomes import ByClass

if TYPE_CHECKING:
    from harness.leaderboard.tables import Block, Cell, Row
    from harness.runs.record import Record

MARKS_FROM = 5  # seeds below which no row is marked best and no difference significant (FAIR-11)
ALPHA = 0.05
RESAMPLES = 2000
TARGETS = (0.01, 0.005, 0.003)  # differences that a power plan is made for: 1, 0.5 and 0.3 points
BEST, SECOND, SIGNIFICANT = "best", "second", "significant"


@dataclass(frozen=True)
class Column:
    """What holds for one metric of a block.

    comparisons   variants that have a paired difference: the family that Holm corrects for
    seeds         the fewest seeds that a variant shares with its baseline
    spread        standard deviation of those differences, pooled over variants; None where it cannot be known
    least         the least true difference found with 80 % power with these seeds after Holm; None without spread
    best          the arm with the highest mean of those compared, and `tied`: how many others are not separable
    unmarked      why no row is marked as best; empty where one is
    classes       median half width of the intervals over test classes; None where outcomes were not kept
    """

    metric: str
    comparisons: int = 0
    seeds: int = 0
    spread: float | None = None
    least: float | None = None
    best: str = ""
    tied: int = 0
    unmarked: str = ""
    classes: float | None = None
    both: float | None = None


def judged(
    rows: Sequence["Row"], metrics: Sequence[str], outcomes: Callable[["Record"], ByClass | None] | None = None
) -> tuple[list["Row"], tuple[Column, ...]]:
    """The rows with their cells tested, ranked and marked, and what holds for each column.

    With `outcomes` cells have their bootstrap intervals too: over seeds, over test classes, and over both.
    """
    known = [_outcomes(row, outcomes) for row in rows]
    judged_cells: list[dict[str, Cell]] = [dict(row.cells) for row in rows]
    columns = []
    for metric in metrics:
        cells = {i: row.cells[metric] for i, row in enumerate(rows) if metric in row.cells}
        trained = {i: cell for i, cell in cells.items() if not rows[i].floor}
        marked, column = _marked(rows, cells, trained, metric)
        marked = _ranked(_tested(marked), trained)
        if outcomes is not None:
            marked = {i: _over_seeds(cell) for i, cell in marked.items()}
            marked = {i: _by_class(cell, metric, known[i], known[_baseline(rows, i)]) for i, cell in marked.items()}
        columns.append(_with_power(column, rows, marked))
        for i, cell in marked.items():
            judged_cells[i][metric] = cell
    return [replace(row, cells=cells) for row, cells in zip(rows, judged_cells, strict=True)], tuple(columns)


def _marked(
    rows: Sequence["Row"], cells: dict[int, "Cell"], trained: dict[int, "Cell"], metric: str
) -> tuple[dict[int, "Cell"], Column]:
    """Bold: the highest mean and all that are not separable from it. Underlined: the second highest distinct mean."""
    able = {i: cell for i, cell in trained.items() if cell.n >= MARKS_FROM}
    if len(able) < 2:
        most = max((cell.n for cell in trained.values()), default=0)
        few = f"n = {most} seed{'s are' if most > 1 else ' is'} fewer than {MARKS_FROM}"
        return cells, Column(metric, unmarked=few if most < MARKS_FROM else "there is nothing to compare it with")
    place = places({i: cell.mean for i, cell in cells.items()})
    best, against = against_the_best(able)
    above = min((i for i in cells if i not in able and place[i] < place[best]), key=lambda i: place[i], default=None)
    if above is not None:
        why = "was not trained" if rows[above].floor else f"has fewer than {MARKS_FROM} seeds"
        return cells, Column(metric, unmarked=f"{rows[above].arm} is higher but {why}")
    tied = {i for i, p in against.items() if p is None or p > ALPHA}
    below = min((place[i] for i in trained if place[i] > place[best]), default=None)
    marks = dict.fromkeys((best, *tied), (BEST,))
    for i in against:
        if place[i] == below:
            marks[i] = (*marks.get(i, ()), SECOND)
    marked = {i: replace(cell, marks=marks.get(i, ())) for i, cell in cells.items()}
    return marked, Column(metric, best=rows[best].arm, tied=len(tied))


def against_the_best(cells: dict[Any, "Cell"]) -> tuple[Any, dict[Any, float | None]]:
    """Return the key of the highest mean, and p of every other cell's difference to it, corrected by Holm.

    p is None where the two share too few seeds to be tested, and 0 where one loses to the best with every seed by the
    same amount.
    """
    place = places({key: cell.mean for key, cell in cells.items()})
    best, *others = sorted(cells, key=place.__getitem__)
    pairs = [paired_difference(cells[best].by_seed, cells[key].by_seed) for key in others]
    adjusted = holm([pair.p if pair.n >= MARKS_FROM else math.nan for pair in pairs]).tolist()
    tested = {key: 0.0 if math.isnan(p) else p for key, p in zip(others, adjusted, strict=True)}
    return best, {key: None if pair.n < MARKS_FROM else tested[key] for key, pair in zip(others, pairs, strict=True)}


def _tested(cells: dict[int, "Cell"]) -> dict[int, "Cell"]:
    """The dagger: differences to the own baseline that pass Holm's correction for all of the column."""
    family = [i for i, cell in cells.items() if cell.paired and cell.paired.n >= MARKS_FROM]
    tested = dict(cells)
    for i, p in zip(family, holm([cells[i].paired.p for i in family]).tolist(), strict=True):
        if not math.isnan(p):
            marks = (*cells[i].marks, *((SIGNIFICANT,) if p <= ALPHA else ()))
            tested[i] = replace(cells[i], adjusted_p=p, marks=marks)
    return tested


def _ranked(cells: dict[int, "Cell"], trained: dict[int, "Cell"]) -> dict[int, "Cell"]:
    """The ranks that the data do not exclude, among trained rows; none where no row has three seeds."""
    if max((cell.n for cell in trained.values()), default=0) < LEAST_SEEDS:
        return cells
    ranks = rank_intervals({i: cell.by_seed for i, cell in trained.items()})
    return {i: replace(cell, rank=ranks.get(i)) for i, cell in cells.items()}


def _outcomes(row: "Row", read: Callable[["Record"], ByClass | None] | None) -> dict[int, ByClass]:
    """Outcomes by seed of all records that kept them."""
    found = {record.trial.seed: read(record) for record in row.records} if read else {}
    return {seed: some for seed, some in found.items() if some is not None}


def _over_seeds(cell: "Cell") -> "Cell":
    """The cell with its bootstrap interval over seeds, which does not take them as normal; from five."""
    if cell.n < LEAST_BOOTSTRAP_SEEDS:
        return cell
    return replace(cell, bootstrap=bootstrap_interval({"": list(cell.by_seed.values())}, resamples=RESAMPLES))


def _baseline(rows: Sequence["Row"], i: int) -> int:
    """The row that row i is compared with: the last one before it that does not stand under another."""
    return next((j for j in range(i, -1, -1) if not rows[j].indent), i)


def _by_class(cell: "Cell", metric: str, own: dict[int, ByClass], base: dict[int, ByClass]) -> "Cell":
    """The cell with its intervals over test classes, alone and with seeds, where all its seeds kept outcomes."""
    kept = [own[seed] for seed in cell.by_seed if seed in own and metric in own[seed].sums]
    if len(kept) < cell.n or not all(kept[0].fits(other) for other in kept) or len(kept[0].classes) < 2:
        return cell
    counts, sums = kept[0].counts, np.array([some.sums[metric] for some in kept])
    cell = replace(
        cell,
        classes=class_bootstrap(sums, counts, over_seeds=False),
        both=class_bootstrap(sums, counts, over_seeds=True) if cell.n >= MARKS_FROM else None,
    )
    seeds = cell.paired.seeds if cell.paired else ()
    if len(seeds) < MARKS_FROM or not all(seed in base and base[seed].fits(own[seed]) for seed in seeds):
        return cell
    apart = np.array([own[seed].sums[metric] - base[seed].sums[metric] for seed in seeds])
    return replace(cell, difference_both=class_bootstrap(apart, counts, over_seeds=True))


def _with_power(column: Column, rows: Sequence["Row"], cells: dict[int, "Cell"]) -> Column:
    """The column with what its seeds can show."""
    pairs = [cell.paired for cell in cells.values() if cell.paired and cell.paired.n >= LEAST_SEEDS]
    freedom = sum(pair.n - 1 for pair in pairs)
    spread = math.sqrt(math.fsum((pair.n - 1) * pair.std**2 for pair in pairs) / freedom) if freedom else None
    seeds = min((pair.n for pair in pairs), default=0)
    least = least_detectable(spread, seeds, comparisons=len(pairs)) if spread else None
    trained = [cell for i, cell in cells.items() if not rows[i].floor]
    return replace(
        column,
        comparisons=len(pairs),
        seeds=seeds,
        spread=spread,
        least=least,
        classes=_median(cell.classes.half for cell in trained if cell.classes),
        both=_median(cell.both.half for cell in trained if cell.both),
    )


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.median(values)) if values else None


def plan(column: Column) -> tuple[int | None, ...]:
    """How many seeds would show differences of 1, 0.5 and 0.3 points, at the spread seen; None: over 100,000."""
    return tuple(_seeds(target, column) for target in TARGETS)


def _seeds(difference: float, column: Column) -> int | None:
    if not column.spread:
        return None
    try:
        return seeds_needed(difference, column.spread, comparisons=max(column.comparisons, 1))
    except ValueError:
        return None


@dataclass(frozen=True)
class Variance:
    """Shares of the variance of one metric over a complete grid: (factors, share), largest first.

    `sizes` are the factors with their numbers of values, `left_out` what had to go for the grid to be complete.
    """

    metric: str
    sizes: tuple[tuple[str, int], ...]
    shares: tuple[tuple[tuple[str, ...], float], ...]
    left_out: tuple[str, ...] = ()


FACTORS = ("dataset", "backbone", "loss", "level", "seed")


def sources_of_variance(blocks: Sequence["Block"], metric: str) -> Variance | None:
    """What moves the score over all blocks, floors apart; None where not two factors and the seed vary.

    Datasets and backbones with several tables (differing settings) are left out, as are values of a factor whose
    cells are not all measured, the worst first, until the grid is complete.
    """
    places = [(block.dataset, block.backbone) for block in blocks]
    twice = sorted({place for place in places if places.count(place) > 1})
    scores: dict[tuple, float] = {}
    for block in blocks:
        if (block.dataset, block.backbone) in twice:
            continue
        arms = Counter((row.loss, row.level) for row in block.trained)
        for row in block.trained:
            if metric in row.cells:
                level = row.level if arms[row.loss, row.level] == 1 else row.full.removeprefix(row.loss)
                key = (block.dataset, block.backbone, row.loss, level)
                scores |= {(*key, seed): value for seed, value in row.cells[metric].by_seed.items()}
    grid, values, dropped = _complete(scores)
    varying = [a for a, some in enumerate(values) if len(some) > 1]
    if len(varying) < 3 or FACTORS[varying[-1]] != "seed":
        return None
    names = [FACTORS[a] for a in varying]
    shares = variance_shares(grid.reshape([len(values[a]) for a in varying]), names)
    if any(map(math.isnan, shares.values())):
        return None
    ordered = sorted(shares.items(), key=lambda item: (not item[0], -item[1], item[0]))
    left_out = tuple(f"dataset {d} with {b}: several tables" for d, b in twice) + dropped
    return Variance(metric, tuple((FACTORS[a], len(values[a])) for a in varying), tuple(ordered), left_out)


def _complete(scores: dict[tuple, float]) -> tuple[np.ndarray, list[list], tuple[str, ...]]:
    """The largest complete grid that dropping one value after another leaves, its axes, and what was dropped."""
    values: list[list] = [sorted({key[axis] for key in scores}) for axis in range(len(FACTORS))]
    grid = np.full([len(some) for some in values], math.nan)
    places = [{value: i for i, value in enumerate(some)} for some in values]
    for key, score in scores.items():
        grid[tuple(place[part] for place, part in zip(places, key, strict=True))] = score
    dropped = []
    while grid.size and (missing := np.isnan(grid)).any():
        others = [tuple(a for a in range(grid.ndim) if a != axis) for axis in range(grid.ndim)]
        share = [missing.mean(axis=axes) for axes in others]
        axis = max(range(grid.ndim), key=lambda a: (share[a].max(), len(values[a])))
        worst = int(np.argmax(share[axis]))
        dropped.append(f"{FACTORS[axis]} {values[axis].pop(worst)}")
        grid = np.delete(grid, worst, axis=axis)
    return grid, values, tuple(dropped)
