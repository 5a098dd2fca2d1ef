"""The file is the register: a loss, dataset, metric or report exists because its file does."""

import functools
import pkgutil
from importlib import import_module
from types import ModuleType

from harness.errors import UserError, unknown


class RegisterError(UserError):
    """A name that no file defines, or a file that does not hold what its register lists."""


def names(package: str) -> tuple[str, ...]:
    """Return the entries of a package in alphabetical order: its modules, except those that begin with `_`."""
    path = import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


def entry(package: str, name: str, kind: str) -> ModuleType:
    """Import the module of one entry. Raise RegisterError with the nearest names when there is none."""
    if name not in names(package):
        raise RegisterError(unknown(kind, name, names(package)))
    return import_module(f"{package}.{name}")


@functools.cache  # a plan asks for each trial, and the register reads its folder every time
def loss(name: str):
    """Return the description of a loss: its parameters with their defaults, its paper, its Metrix form.

    The losses are a layer below and importable without the harness, so they keep their own register. This is the way
    to it, and to `pml:…` losses. Raise RegisterError with the nearest names when there is no such loss.
    """
    try:
        return import_module("harness.training.pml" if name.startswith("pml:") else "baselines").describe(name)
    except ValueError as error:
        raise RegisterError(str(error)) from None
