"""The conformance set of evaluators: cases whose scores are known."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from harness.evaluation.retrieval import Evaluation, evaluate


def conformance(evaluator: Callable[..., Evaluation] = evaluate) -> list[str]:
    """Return what an evaluator gets wrong on cases whose scores are known; an empty list means that it passes.

    A collapsed embedding scores at most chance, and a perfect one 1. Copies of a query in another class come before
    its positives. Queries without a positive are left out. Vectors without a direction are rejected.
    """
    problems = []
    for name, arguments, expected in _conformance_cases():
        try:
            result = evaluator(**arguments)
        except ValueError as error:
            if expected is not None:
                problems.append(f"{name}: rejected ({error})")
            continue
        if expected is None:
            problems.append(f"{name} was not rejected, scored R@1 = {result.values['R@1']:.3f}")
            continue
        scores = {**result.values, "excluded": result.excluded}
        problems += [
            f"{name} scored {title} = {scores[title]:.3f}, expected {low:.3f}"
            + (f" to {high:.3f}" if high > low else "")
            for title, (low, high) in expected.items()
            if not low - 1e-6 <= scores[title] <= high + 1e-6
        ]
    return problems


def _conformance_cases() -> Iterator[tuple[str, dict, dict[str, tuple[float, float]] | None]]:
    """Yield (name, arguments, {title: (min, max)}); None for the scores if the evaluator must reject the case."""

    def exactly(**scores: float) -> dict[str, tuple[float, float]]:
        titles = {"r1": "R@1", "r2": "R@2", "r4": "R@4", "map": "MAP@R", "precision": "R-Precision"}
        return {titles.get(name, name): (score, score) for name, score in scores.items()}

    rng = np.random.default_rng(0)
    many = np.arange(1003) // 17
    constant = np.tile(rng.standard_normal(512), (1003, 1))
    chance = {"R@1": (0.0, 16 / 1002), "R@8": (0.0, 8 * 16 / 1002), "MAP@R": (0.0, 16 / 1002)}
    yield "constant embedding", {"embeddings": constant, "labels": many}, chance
    noisy = constant + 1e-9 * rng.standard_normal(constant.shape)
    yield "constant embedding with rounding noise", {"embeddings": noisy, "labels": many}, chance
    separated = np.eye(59)[many] + 1e-3 * rng.standard_normal((1003, 59))
    perfect = {"embeddings": separated, "labels": many}
    yield "perfect embedding", perfect, exactly(r1=1, r2=1, r4=1, map=1, precision=1)

    for name, value in (("NaN", math.nan), ("infinite", math.inf)):
        broken = separated.copy()
        broken[5, 7] = value
        yield f"embedding with a {name} value", {"embeddings": broken, "labels": many}, None
    yield "embedding with a zero vector", {"embeddings": separated * (many != 3)[:, None], "labels": many}, None
    yield "K beyond the candidates", perfect | {"ks": (1, 1003)}, None
    same_array = {"gallery": separated.copy(), "gallery_labels": many}
    yield "gallery that is the query array", perfect | same_array, None

    # On the circle the nearest neighbour has the nearest angle. By hand, the positives of the five queries have the
    # ranks 3 | 2, 4 | 1, 4 | 4 | 2, 3.
    points, labels = _at_degrees(0, 10, 25, 60, 100), ["a", "b", "b", "a", "b"]
    by_hand = exactly(r1=1 / 5, r2=3 / 5, r4=1, map=1 / 5, precision=3 / 10, excluded=0)
    circle = {"embeddings": points, "labels": labels, "ks": (1, 2, 4)}
    yield "hand-computed case", circle, by_hand
    reversed_gallery = {"gallery": points[::-1], "gallery_labels": labels[::-1], "gallery_ids": range(5)[::-1]}
    yield "the same with the queries in the gallery", circle | reversed_gallery | {"query_ids": range(5)}, by_hand

    twins = {"embeddings": _at_degrees(0, 0, 50, 50), "labels": ["a", "b", "a", "b"], "ks": (1, 2)}
    yield "copies in another class", twins, exactly(r1=0, r2=0, map=0, precision=0)
    twins = {"embeddings": _at_degrees(0, 0, 50, 50), "labels": ["a", "a", "b", "b"], "ks": (1, 2)}
    yield "copies in the same class", twins, exactly(r1=1, r2=1, map=1, precision=1)
    single = {"embeddings": _at_degrees(0, 5, 20, 60), "labels": ["a", "b", "b", "c"], "ks": (1, 2)}
    yield "classes of one image", single, exactly(r1=1 / 2, r2=1, map=1 / 2, excluded=2)


def _at_degrees(*angles: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
