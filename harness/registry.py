"""The registry of losses, levels, datasets, metrics and reports: each exists because its file does."""

import functools
import pkgutil
from importlib import import_module
from types import ModuleType

from harness.errors import UserError, unknown


class RegisterError(UserError):
    """Raised for a name that no file defines, and for a file that lacks what it must define."""


def names(package: str) -> tuple[str, ...]:
    """Return the entries of a package in alphabetical order: its modules, except those that begin with `_`."""
    path = import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


def entry(package: str, name: str, kind: str) -> ModuleType:
    """Return the imported module of one entry. Raise RegisterError with the nearest names if there is none."""
    if name not in names(package):
        raise RegisterError(unknown(kind, name, names(package)))
    return import_module(f"{package}.{name}")


@functools.cache  # called for each trial of a plan, and the folder would be read every time
def loss(name: str):
    """Return the description of a loss: its parameters with their defaults, its paper, its Metrix form.

    The losses are importable without the harness, so they have their own registry. This function finds them, and the
    losses `pml:…`. Raise RegisterError with the nearest names if there is no such loss.
    """
    try:
        return import_module("harness.training.pml" if name.startswith("pml:") else "baselines").describe(name)
    except ValueError as error:
        raise RegisterError(str(error)) from None


@functools.cache  # sorting a table asks for every row
def levels() -> tuple[str, ...]:
    """Return the names of all levels but the baseline: those of Metrix, then the rivals in alphabetical order."""
    return import_module("metrix.levels").names()


@functools.cache
def level(name: str):
    """Return the description of a level: its title, paper, options with their defaults, and search space.

    Raise RegisterError with the nearest names if there is no such level.
    """
    if name not in levels():
        raise RegisterError(unknown("level", name, ("baseline", *levels())))
    return import_module("metrix.levels").describe(name)


def level_order(name: str) -> tuple[int, ...]:
    """Return the key that sorts levels: the baseline, those of Metrix, the rivals, then any other.

    Of two levels in one arm, such as `xbm+embedding`, the first counts most.
    """
    known = ("baseline", *levels())
    return tuple(known.index(part) if part in known else len(known) for part in name.split("+"))
