"""Other ways to mix, one per file: `create("mochi", loss, hardest=32)(embeddings, labels)`.

The folder is the registry: a file that defines a `Rival` is a level, named after the file. Torch is imported when a
rival is created, not with this package.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.description import stated_in

if TYPE_CHECKING:
    import torch
    from torch import nn

    from baselines.form import Loss
    from metrix.rivals._form import Rival

__all__ = ["Description", "create", "describe", "find", "names", "refusal"]

SIZES = ("loss", "generator")  # arguments of `create` that are not options
DEFAULTS: dict[str, Any] = {
    "title": None,
    "paper": None,
    "year": None,
    "tuned_on": None,
    "remark": "",
    "search_space": {},
    "refuses": {},
    "published_with": (),
    "before_metrix": False,
}


@dataclass(frozen=True)
class Description:
    """The description of a rival.

    summary         the first line of its file
    parameters      its options and their defaults
    search_space    for each tuned option {"low", "high", "log"} or {"choices"}
    remark          what a table with it must say; "" for nothing
    refuses         the kinds of loss without a form, with the reason (see `baselines.form.Kind`)
    published_with  the losses that it was published with
    before_metrix   whether a level of Metrix may follow it in one arm
    """

    name: str
    title: str
    summary: str
    paper: str
    year: int
    parameters: dict[str, Any]
    tuned_on: str | None
    remark: str
    search_space: dict[str, dict[str, Any]]
    refuses: dict[str, str]
    published_with: tuple[str, ...]
    before_metrix: bool


def names() -> tuple[str, ...]:
    """Return the names of all rivals, in alphabetical order."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def describe(name: str) -> Description:
    """Return the description of a rival. Raise ValueError for an unknown one."""
    _require(name)
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    path = Path(spec.origin if spec and spec.origin else "")  # a file of this folder
    read = stated_in(path, "Rival", DEFAULTS, SIZES)
    if read is None:
        rival = find(name)
        parameters = {p.name: p.default for p in inspect.signature(rival).parameters.values() if p.name not in SIZES}
        read = parameters, {key: getattr(rival, key) for key in DEFAULTS}
    parameters, stated = read
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return Description(name=name, summary=text.partition("\n")[0].removesuffix("."), parameters=parameters, **stated)


def find(name: str) -> type[Rival]:
    """Return the class of a rival. Raise ValueError with the nearest name if there is none."""
    from metrix.rivals._form import Rival

    _require(name)
    module = importlib.import_module(f"{__name__}.{name}")
    rivals = [
        each
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, Rival) and each.__module__ == module.__name__
    ]
    if len(rivals) != 1:
        raise ValueError(f"{name}.py must define exactly one Rival, not {len(rivals)}")
    return rivals[0]


def create(name: str, loss: Loss, *, generator: torch.Generator | None = None, **options: Any) -> Rival:
    """Return the rival `name` around a loss of `baselines`; `generator` is the source of its random numbers.

    Raise ValueError for an unknown name or option, for an option out of range, and for a loss that it does not take.
    """
    known = describe(name).parameters
    for given in options:
        if given not in known:
            raise ValueError(f"{name} has no option {given!r}; {_nearest(given, known)}")
    return find(name)(loss, generator=generator, **options)


def refusal(
    name: str, loss: str | nn.Module, hyperparameters: Mapping[str, Any] | None = None, **options: Any
) -> str | None:
    """Return why the rival `name` with these options does not take a loss, or None if it does.

    `loss` is a loss, or the name of one with those of its `hyperparameters` that are not defaults.
    """
    return find(name).refusal(loss, hyperparameters, **options)


def _require(name: str) -> None:
    if name not in names():
        raise ValueError(f"no level named {name!r} in metrix.rivals; {_nearest(name, names())}")


def _nearest(given: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if known else "it has none"
