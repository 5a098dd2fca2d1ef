"""Rules about the evaluator: its scores, the neighbours of a query, the depth of its search, excluded queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import counted, ids

if TYPE_CHECKING:
    from harness.runs.record import Record

Evaluator = Callable[..., Any]
DEEP = 2100  # more than the 2,048 neighbours at which GPU searches stop


@rule("FAIR-16", "E", over="evaluator")
def conforms(evaluate: Evaluator, conformance: Callable[..., Sequence[str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The evaluator passes its own conformance set.

    Some common evaluators give a collapsed embedding 100 % or chance, depending on the order of its ties. Every
    printed number depends on the evaluator.
    """
    for problem in conformance(evaluate):
        yield f"{problem}.", ()


@rule("FAIR-17", "E", over="evaluator")
def query_removed_by_index(evaluate: Evaluator, conformance: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A query is removed from its own neighbours by index, never by rank.

    The nearest neighbour may not be the query itself: if there is a copy in another class, dropping the first rank
    may drop the copy, and the query finds itself.
    """
    twins, labels = _at_degrees(0, 0, 50, 50), ["a", "b", "a", "b"]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        whole = {"gallery": twins[order], "gallery_labels": [labels[i] for i in order], "gallery_ids": order}
        for name, gallery in (("among themselves", {}), ("in a gallery", {**whole, "query_ids": [0, 1, 2, 3]})):
            score = evaluate(twins, labels, ks=(1,), **gallery).values["R@1"]
            if score != 0:
                yield f"copies of another class, searched {name}, scored R@1 = {score:.3f}, expected 0.", ()


@rule("FAIR-18", "E", over="evaluator")
def deep_enough(evaluate: Evaluator, conformance: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The search is as deep as the metric needs: for MAP@R, the size of the largest class.

    A search for the nearest hundred lowers MAP@R and R-Precision of every larger class, without any sign of it.
    """
    gallery = _at_degrees(*np.linspace(0, 40, DEEP), *np.linspace(170, 180, 5))
    labels = ["large"] * DEEP + ["small"] * 5
    queries = {"embeddings": _at_degrees(1, 20, 39, 175), "labels": ["large"] * 3 + ["small"], "ks": (1,)}
    result = evaluate(**queries, gallery=gallery, gallery_labels=labels)
    for metric in ("MAP@R", "R-Precision"):
        if result.values[metric] < 1:
            score = f"{metric} = {result.values[metric]:.3f}"
            yield f"a perfect embedding of a class of {DEEP} images scored {score}, expected 1.", ()


def _at_degrees(*angles: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)


@rule("FAIR-19", "W", over="records")
def excluded_are_counted(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Queries without a positive are excluded and counted.

    They have nothing to retrieve. Counting them as wrong, as correct or not at all gives three different scores.
    They are excluded here, and the row states their number.
    """
    excluded: dict[tuple[str, int, int], list[Record]] = defaultdict(list)
    for record in results.tested:
        if record.data.test_excluded:
            excluded[record.trial.dataset.name, record.data.test_excluded, record.data.test_queries].append(record)
    for (name, out, kept), records in excluded.items():
        have = "has" if out == 1 else "have"
        are = "is" if out == 1 else "are"
        yield f"{name}: {out:,} of {out + kept:,} test queries {have} no positive and {are} excluded.", ids(records)


@rule("FAIR-19", "W", over="records")
def no_query_is_lost(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every test query is scored or counted as excluded, and all rows of a table have equally many."""
    for record in results.tested:
        data = record.data
        if data.test_asked is not None and (lost := data.test_asked - data.test_queries - data.test_excluded):
            known = f"{data.test_queries:,} scored and {data.test_excluded:,} excluded of {data.test_asked:,} queries"
            yield f"{record.id}: {known}, {lost:,} unaccounted for.", (record.id,)
    for table in results.tables:
        counts: dict[int, list[Record]] = defaultdict(list)
        for record in table.records:
            counts[record.data.test_queries].append(record)
        if len(counts) > 1:
            listed = ", ".join(f"{n:,} ({counted(records)})" for n, records in sorted(counts.items()))
            yield (
                f"{table.name}: rows of one table were scored on {listed} queries.",
                ids(min(counts.values(), key=len)),
            )
