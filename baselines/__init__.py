"""Published metric-learning losses, one per file: `create("multi_similarity", beta=2.0)(embeddings, labels)`.

The folder is the registry: a file that defines a `Loss` is a loss, named after the file. Torch is imported when a
loss is created, not with this package.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.description import Description, of_class, of_source

if TYPE_CHECKING:
    import torch

    from baselines.form import Loss

__all__ = ["Description", "Loss", "create", "describe", "names"]

# The other modules, which losses use.
_FOUNDATION = {"chunks", "counts", "description", "form", "numerics", "ranks", "weights"}


def names() -> tuple[str, ...]:
    """Return the names of all losses, in alphabetical order."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _FOUNDATION))


def create(
    name: str,
    *,
    num_classes: int | None = None,
    dim: int | None = None,
    generator: torch.Generator | None = None,
    **hyperparameters: Any,
) -> Loss:
    """Return the loss `name`. Losses that learn proxies need num_classes and dim (of the embeddings).

    `generator` draws the initial proxies. Raise ValueError for an unknown name or hyperparameter, and for one that is
    out of range. The loss has no second derivative: a gradient with `create_graph=True` raises a RuntimeError.
    """
    loss = find(name)
    known = describe(name).parameters
    for given in hyperparameters:
        if given not in known:
            raise ValueError(f"{name} has no hyperparameter {given!r}; {_nearest(given, known)}")
    sizes = {"num_classes": num_classes, "dim": dim, "generator": generator}
    for size, value in list(sizes.items())[:2]:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{size} = {value!r} is out of range: it must be a positive integer")
    wanted = inspect.signature(loss).parameters.keys() & sizes.keys()
    arguments = inspect.signature(loss).parameters
    missing = [
        size
        for size in ("num_classes", "dim")
        if size in wanted and sizes[size] is None and arguments[size].default is inspect.Parameter.empty
    ]
    if missing:
        raise ValueError(f"{name} learns a vector for each class, so it needs {' and '.join(missing)}")
    return loss(**{size: sizes[size] for size in wanted}, **hyperparameters)


def describe(name: str) -> Description:
    """Return the description of the loss `name`. Raise ValueError for an unknown one."""
    _require(name)
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    stated = of_source(name, Path(spec.origin)) if spec and spec.origin else None
    return stated or of_class(name, find(name))


def find(name: str) -> type[Loss]:
    """Return the class of the loss `name`. Raise ValueError with the nearest name if there is none."""
    from baselines.form import Loss

    _require(name)
    module = importlib.import_module(f"{__name__}.{name}")
    losses = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Loss) and c.__module__ == module.__name__
    ]
    if len(losses) != 1:
        raise ValueError(f"{name}.py must define exactly one Loss, not {len(losses)}")
    return losses[0]


def _require(name: str) -> None:
    if name not in names():
        raise ValueError(f"no loss named {name!r}; {_nearest(name, names())}")


def __getattr__(name: str) -> Any:
    if name == "Loss":
        return importlib.import_module("baselines.form").Loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _nearest(given: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if known else "it has none"
