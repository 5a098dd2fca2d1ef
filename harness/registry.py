"""The file is the register: a loss, dataset, metric or report exists because its file does."""

import difflib
import functools
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from harness.errors import UserError, some


class RegisterError(UserError):
    """A name that no file stands for, or a file that is not what its register holds."""


def names(package: str) -> tuple[str, ...]:
    """The entries of a package in alphabetical order: its modules, less those that begin with an underscore."""
    path = import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


def entry(package: str, name: str, kind: str) -> ModuleType:
    """The module of one entry; a RegisterError names the nearest existing ones when there is none."""
    if name not in names(package):
        raise RegisterError(unknown(kind, name, names(package)))
    return import_module(f"{package}.{name}")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: `no loss named 'x'; did you mean 'y'?`"""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if near:
        return f"no {kind} named {str(name)!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"no {kind} named {str(name)!r}; there are: {some(known, 20) or 'none'}"


@functools.cache  # a plan asks for each trial, and the register looks into its folder every time
def loss(name: str):
    """The description of a loss: its parameters with their defaults, its paper, whether it has a Metrix form.

    The losses are a layer below and stay importable without the harness, so they keep their own register; this is
    its door, and that of `pml:…` losses. Raises RegisterError with near names when there is no such loss.
    """
    try:
        return import_module("harness.training.pml" if name.startswith("pml:") else "baselines").describe(name)
    except ValueError as error:
        raise RegisterError(str(error)) from None
