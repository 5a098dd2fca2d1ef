"""A fair, distributed benchmark of deep metric learning.

The names below are the stable surface. They are imported on first use, so that `import harness` costs nothing and
needs neither ray nor faiss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.config import Trial
    from harness.evaluation.retrieval import evaluate
    from harness.grid import Grid
    from harness.launch import run_grid
    from harness.training.embedder import Embedder
    from harness.training.trial import run_trial

_HOME = {
    "Grid": "harness.grid",
    "Trial": "harness.config",
    "run_trial": "harness.training.trial",
    "run_grid": "harness.launch",
    "evaluate": "harness.evaluation.retrieval",
    "Embedder": "harness.training.embedder",
}

__all__ = ["Embedder", "Grid", "Trial", "evaluate", "run_grid", "run_trial"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"harness has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
