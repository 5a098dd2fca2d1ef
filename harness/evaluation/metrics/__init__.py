"""Retrieval metrics: one per file, each a pure function that returns one number per query.

A metric sees ranks, never similarities: only the evaluator decides what a query may retrieve and how ties break.
The file is the register: `harness/evaluation/metrics/<name>.py` holds a function called `<name>` and two constants,

    TITLE   name of the number in records and tables; "{k}" stands for K if the function takes one
    DEPTH   how deep ranks must be known:
            "best"      only the best positive's, which is exact at any depth
            "relevant"  up to R, the query's number of positives
            "k"         up to K
            "all"       of every positive

and the function takes `(ranks, relevant)` or `(ranks, relevant, k)`:

    ranks     (q, m) int64, each row ascending: the ranks of the query's positives among its candidates, from 1.
              Entries past the query's own number of positives, and ranks past DEPTH, are `BEYOND`
    relevant  (q,) int64 ≥ 1: R, the number of the query's positives among its candidates
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness import registry

BEYOND = np.iinfo(np.int64).max
DEPTHS = ("best", "relevant", "k", "all")


@dataclass(frozen=True)
class Metric:
    """A metric as its file defines it: `compute(ranks, relevant[, k])` returns one number per query."""

    name: str
    title: str
    depth: str
    takes_k: bool
    compute: Callable[..., np.ndarray]
    summary: str

    def columns(self, ks: tuple[int, ...]) -> dict[str, dict[str, int]]:
        """Return the columns of this metric, each with the keyword arguments that compute it."""
        if not self.takes_k:
            return {self.title: {}}
        return {self.title.format(k=k): {"k": k} for k in ks}


def names() -> tuple[str, ...]:
    """Return the names of all metrics, in the order of their files."""
    return registry.names(__name__)


def load(name: str) -> Metric:
    """Load one metric from its file. Raise RegisterError if there is no such file or it does not define a metric."""
    module = registry.entry(__name__, name, "metric")
    compute: Callable[..., np.ndarray] | None = getattr(module, name, None)
    if not callable(compute):
        raise registry.RegisterError(f"metric file {name}.py: needs a function named {name!r}")
    for constant in ("TITLE", "DEPTH"):
        if not isinstance(getattr(module, constant, None), str):
            raise registry.RegisterError(f"metric file {name}.py: needs a constant {constant}, a string")
    if module.DEPTH not in DEPTHS:
        raise registry.RegisterError(
            f"metric file {name}.py: DEPTH = {module.DEPTH!r}; choose one of {', '.join(DEPTHS)}"
        )
    takes_k = "k" in inspect.signature(compute).parameters
    if takes_k != ("{k}" in module.TITLE):
        raise registry.RegisterError(f"metric file {name}.py: TITLE must contain {{k}} if and only if {name} takes k")
    summary = (inspect.getdoc(compute) or "").partition("\n")[0]
    return Metric(name, module.TITLE, module.DEPTH, takes_k, compute, summary)


def load_all() -> tuple[Metric, ...]:
    """Load all metrics, those with a K first, in the order of table columns."""
    return tuple(sorted(map(load, names()), key=lambda metric: not metric.takes_k))
