"""Sources of the variance of a score over all blocks, if the results form a complete grid."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas

from harness.leaderboard.columns import HERE, lines
from harness.leaderboard.statistics import variance_shares

FACTORS = ("dataset", "backbone", "loss", "level", "seed")


@dataclass(frozen=True)
class Variance:
    """Shares of the variance of one metric over a complete grid.

    sizes     the factors with their numbers of values
    shares    (factors, share), largest first
    left_out  what was removed to make the grid complete
    """

    metric: str
    sizes: tuple[tuple[str, int], ...]
    shares: tuple[tuple[tuple[str, ...], float], ...]
    left_out: tuple[str, ...] = ()


def sources_of_variance(leaderboard: pandas.DataFrame, metric: str) -> Variance | None:
    """Return the sources of variance over all blocks without floors; None unless two factors and the seed vary.

    Datasets and backbones with several tables (differing settings) are left out. Then the factor values with the
    most missing cells are removed, one by one, until the grid is complete.
    """
    ours = leaderboard[(leaderboard["source"] == HERE) & (leaderboard["level"] != "floor")]
    columns = ("block", "row", "dataset", "backbone", "arm", "baseline", "level", "name", "metric", "values_by_seed")
    our_lines = lines(ours, columns)
    blocks = dict.fromkeys((line.block, line.dataset, line.backbone) for line in lines(leaderboard, columns[:4]))
    tables = Counter((dataset, backbone) for _, dataset, backbone in blocks)
    ambiguous = sorted(place for place, number in tables.items() if number > 1)
    rows = {(line.block, line.row): (line.block, line.baseline or line.arm, line.level) for line in our_lines}
    arms = Counter(rows.values())
    scores: dict[tuple, float] = {}
    for line in our_lines:
        if line.metric != metric or line.values_by_seed is None or (line.dataset, line.backbone) in ambiguous:
            continue
        loss = line.baseline or line.arm
        name = line.name if line.baseline else line.name.removeprefix(loss)
        level = line.level if arms[line.block, loss, line.level] == 1 else name
        for seed, value in by_seed(line.values_by_seed).items():
            scores[line.dataset, line.backbone, loss, level, seed] = value
    grid, values, dropped = _complete(scores)
    varying = [a for a, axis in enumerate(values) if len(axis) > 1]
    if len(varying) < 3 or FACTORS[varying[-1]] != "seed":
        return None
    names = [FACTORS[a] for a in varying]
    shares = variance_shares(grid.reshape([len(values[a]) for a in varying]), names)
    if any(map(math.isnan, shares.values())):
        return None
    ordered = sorted(shares.items(), key=lambda item: (not item[0], -item[1], item[0]))
    left_out = tuple(f"dataset {d} with {b}: several tables" for d, b in ambiguous) + dropped
    return Variance(metric, tuple((FACTORS[a], len(values[a])) for a in varying), tuple(ordered), left_out)


def by_seed(text: str) -> dict[int, float]:
    """Return `0:0.41 1:0.53` as {0: 0.41, 1: 0.53}."""
    return {int(seed): float(value) for seed, _, value in (pair.partition(":") for pair in text.split())}


def _complete(scores: dict[tuple, float]) -> tuple[np.ndarray, list[list], tuple[str, ...]]:
    """Drop one value after another until the grid is complete. Return the grid, its axes and the dropped values."""
    values: list[list] = [sorted({key[axis] for key in scores}) for axis in range(len(FACTORS))]
    grid = np.full([len(axis) for axis in values], math.nan)
    places = [{value: i for i, value in enumerate(axis)} for axis in values]
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
