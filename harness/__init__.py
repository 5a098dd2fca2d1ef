"""A fair, distributed benchmark of deep metric learning.

The names below are the stable surface. They are imported on first use, so that `import harness` costs nothing and
needs neither ray nor faiss.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "Grid": "harness.grid",
    "Trial": "harness.config",
    "load": "harness.training.trained",
    "run_trial": "harness.training.trial",
    "run_grid": "harness.launch",
    "evaluate": "harness.evaluation.retrieval",
    "Embedder": "harness.training.embedder",
    "scores": "harness.leaderboard.scores",
    "leaderboard": "harness.leaderboard.frame",
}

__all__ = ["Embedder", "Grid", "Trial", "evaluate", "leaderboard", "load", "run_grid", "run_trial", "scores"]  # pyright: ignore[reportUnsupportedDunderAll] (imported on first use)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"harness has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


class _Harness(ModuleType):
    """This package, in which `harness.leaderboard` is the function and never the package of that name.

    Importing a submodule sets it as an attribute of its package: without the setter below, `harness.leaderboard`
    would be a function or a package, whichever came last. The package is imported from, as in
    `from harness.leaderboard import scores`, which does not look at the attribute.
    """

    @property
    def leaderboard(self):
        return __getattr__("leaderboard")

    @leaderboard.setter
    def leaderboard(self, package: ModuleType) -> None:
        """Keep the function; the import system has the package in `sys.modules`."""

    def __reduce__(self):
        """Pickle the package by its name, as modules of the plain type are."""
        return import_module, (__name__,)


sys.modules[__name__].__class__ = _Harness
