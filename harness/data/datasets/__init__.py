"""The datasets: one file each, found by name. A dataset is an index of images with labels and a class split.

A file `<name>.py` in this folder is the dataset `<name>`. It defines

    NEEDS_DATA: bool                                                  # whether the user must name a folder or file
    def load(data: Path, cache: Path, **options) -> Dataset           # keyword options with defaults

and the first line of its docstring is its description. Without NEEDS_DATA, `data` is None unless the user names one.
No other file needs a change. Datasets of image files use `_files.py`. A published benchmark defines two more names,
with which `harness.data.doctor` checks a copy of it:

    STANDARD: Standard                                                # what a standard copy contains
    def index(data: Path, **options) -> Dataset                       # what the copy's lists say, without its files
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.data.cache import default_folder
from harness.data.datasets._checks import check, problems
from harness.data.datasets._dataset import ROLES, SPLITS, ArgumentError, Dataset, DatasetError, PassedOver

if TYPE_CHECKING:
    from harness.data.datasets._standard import Standard

__all__ = [
    "ROLES",
    "SPLITS",
    "ArgumentError",
    "Dataset",
    "DatasetError",
    "Description",
    "PassedOver",
    "check",
    "describe",
    "index",
    "load",
    "names",
    "problems",
    "standard",
]


@dataclass(frozen=True)
class Description:
    """What is known about a dataset without loading it."""

    name: str
    title: str
    needs_data: bool
    options: dict[str, Any]  # option: default


def names() -> tuple[str, ...]:
    """Return the names of all datasets, which are the files of this folder, in alphabetical order."""
    return registry.names(__name__)


def describe(name: str) -> Description:
    """Return the title, options and needs of one dataset. Raise DatasetError for an unknown name."""
    module = _module(name)
    title = (inspect.getdoc(module) or "").partition("\n")[0]
    return Description(name, title, module.NEEDS_DATA, _options(module))


def load(name: str, data: Path | str | None = None, cache: Path | str | None = None, **options) -> Dataset:
    """Load the index of a dataset and check it (see `check`).

    name: one of `names()`.
    data: the user's copy; ignored by datasets that need none (`describe(name).needs_data`).
    cache: folder for what is computed once, by default `~/.cache/metrix-bench`.
    options: options of the dataset, see `describe(name).options`.

    Raises DatasetError for an unknown name or option, for missing data, and for what `check` rejects.
    """
    module, data, cache = _prepare(name, data, cache, options)
    dataset = module.load(data, cache, **options)
    check(dataset)
    return dataset


def index(name: str, data: Path | str | None = None, cache: Path | str | None = None, **options) -> Dataset:
    """Return the index of a copy unchecked; for a published benchmark, from its lists without looking at its files.

    For `harness.data.doctor`; arguments and errors as for `load`.
    """
    module, data, cache = _prepare(name, data, cache, options)
    if not hasattr(module, "index"):
        return module.load(data, cache, **options)
    return module.index(data, **{option: options[option] for option in options if option != "allow_nonstandard"})


def _prepare(
    name: str, data: Path | str | None, cache: Path | str | None, options: dict[str, Any]
) -> tuple[ModuleType, Path | None, Path]:
    """Return the module of a dataset and the paths for it, after checking that its options and data exist."""
    module = _module(name)
    known = _options(module)
    for option, value in options.items():
        if option not in known:
            raise ArgumentError(registry.unknown(f"option of dataset {name!r}", option, known))
        _check_type(name, option, value, known[option])
    if module.NEEDS_DATA:
        if data is None:
            raise ArgumentError(
                f"dataset {name!r} reads your own copy: say where it is with --data FOLDER (data=… in Python)"
            )
        try:
            os.stat(data)
        except (FileNotFoundError, NotADirectoryError):
            raise ArgumentError(f"dataset {name!r}: there is no {data}") from FileNotFoundError(data)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise ArgumentError(f"dataset {name!r}: {data}: {getattr(error, 'strerror', error)}") from error
    return module, None if data is None else Path(data), Path(cache) if cache else default_folder()


def standard(name: str) -> Standard | None:
    """Return what a standard copy of a published benchmark contains; None for other datasets.

    Raises DatasetError for an unknown name.
    """
    return getattr(_module(name), "STANDARD", None)


def _module(name: str) -> ModuleType:
    try:
        return registry.entry(__name__, name, "dataset")
    except ValueError as error:
        raise DatasetError(str(error)) from None


def _options(module: ModuleType) -> dict[str, Any]:
    parameters = list(inspect.signature(module.load).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def _check_type(name: str, option: str, value: Any, default: Any) -> None:
    """Raise DatasetError unless an option has the type of its default; integers count as floats."""
    allowed = (int, float) if isinstance(default, float) else type(default)
    wrong = isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, allowed)
    if default is not None and wrong:
        raise ArgumentError(f"dataset {name!r}: {option} = {value!r}, expected something like {default!r}")
