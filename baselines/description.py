"""Describe a loss without creating it: from its source, which needs no torch, or from its class."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.form import Loss

SIZES = ("num_classes", "dim", "generator")  # arguments of `create` that are not hyperparameters
DEFAULTS: dict[str, Any] = {
    "kind": "pairs",
    "mixed": "candidates",
    "why_no_metrix": "",
    "rates": {},
    "tuned_on": None,
    "remark": "",
    "search_space": {},
}


@dataclass(frozen=True)
class Description:
    """The description of a loss."""

    name: str
    title: str
    paper: str
    year: int
    kind: str
    """What it compares, see `form.Kind`; "library" for a loss of another library."""
    parameters: dict[str, Any]
    """The hyperparameters and their defaults."""
    metrix: bool
    why_no_metrix: str
    learnable: tuple[str, ...]
    tuned_on: str | None
    """Where the defaults were tuned, if they were."""
    remark: str
    """What a table with it must say; "" for nothing."""
    search_space: dict[str, dict[str, Any]]
    """For each tuned hyperparameter {"low", "high", "log"} or {"choices"}."""


def of_class(name: str, loss: type[Loss]) -> Description:
    """Return the description of the loss `name`."""
    parameters = {p.name: p.default for p in inspect.signature(loss).parameters.values() if p.name not in SIZES}
    return _description(name, parameters, {key: getattr(loss, key) for key in ("title", "paper", "year", *DEFAULTS)})


def of_source(name: str, path: Path) -> Description | None:
    """Return the same from the file of the loss; None if the file states anything other than by plain literals."""
    read = stated_in(path, "Loss", {"title": None, "paper": None, "year": None, **DEFAULTS}, SIZES)
    return None if read is None else _description(name, *read)


def stated_in(
    path: Path, base: str, defaults: Mapping[str, Any], sizes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what the one class of a file with this base states: its arguments by default, and its attributes.

    Attributes are those in `defaults`; the arguments in `sizes` are left out. None if the class states any of them
    other than by a plain literal.
    """
    body = ast.parse(path.read_text(encoding="utf-8")).body
    classes = [n for n in body if isinstance(n, ast.ClassDef) and [ast.unparse(each) for each in n.bases] == [base]]
    if len(classes) != 1:
        return None
    stated: dict[str, Any] = dict(defaults)
    parameters: dict[str, Any] | None = {}  # those of a class without its own `__init__`
    try:
        for node in classes[0].body:
            match node:
                case ast.Assign(targets=[ast.Name(id="__init__")]):
                    return None
                case (
                    ast.Assign(targets=[ast.Name(id=key)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=key), value=ast.expr() as value)
                ):
                    if key in defaults:
                        stated[key] = _literal(value)
                case ast.FunctionDef(name="__init__"):
                    parameters = _parameters(node.args, sizes)
                case ast.FunctionDef() | ast.Expr():
                    pass
                case _:
                    return None
    except ValueError:
        return None
    return None if parameters is None else (parameters, stated)


def _description(name: str, parameters: dict[str, Any], stated: dict[str, Any]) -> Description:
    return Description(
        name=name,
        title=stated["title"],
        paper=stated["paper"],
        year=stated["year"],
        kind=stated["kind"],
        parameters=parameters,
        metrix=stated["mixed"] is not None,
        why_no_metrix=stated["why_no_metrix"],
        learnable=tuple(stated["rates"]),
        tuned_on=stated["tuned_on"],
        remark=stated["remark"],
        search_space=stated["search_space"],
    )


def _parameters(args: ast.arguments, sizes: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of `__init__` with their defaults, without `sizes`; None if one has no default."""
    without = args.args[1 : len(args.args) - len(args.defaults)]  # the first is self
    if args.kwonlyargs or args.vararg or args.kwarg or args.posonlyargs or {a.arg for a in without} - {*sizes}:
        return None
    given = args.args[len(args.args) - len(args.defaults) :]
    return {a.arg: _literal(d) for a, d in zip(given, args.defaults, strict=True) if a.arg not in sizes}


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, or of a quotient of two. Raise ValueError for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _literal(node.left) / _literal(node.right)
    return ast.literal_eval(node)
