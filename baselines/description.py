"""Describe a loss without creating it: from its source, which needs no torch, or from its class."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.form import Loss

SIZES = ("num_classes", "dim", "generator")  # arguments of `create` that are not hyperparameters
DEFAULTS: dict[str, Any] = {
    "mixed": "candidates",
    "why_no_metrix": "",
    "rates": {},
    "tuned_on": None,
    "search_space": {},
}


@dataclass(frozen=True)
class Description:
    """The description of a loss."""

    name: str
    title: str
    paper: str
    year: int
    parameters: dict[str, Any]
    """The hyperparameters and their defaults."""
    metrix: bool
    why_no_metrix: str
    learnable: tuple[str, ...]
    tuned_on: str | None
    """Where the defaults were tuned, if they were."""
    search_space: dict[str, dict[str, Any]]
    """For each tuned hyperparameter {"low", "high", "log"} or {"choices"}."""


def of_class(name: str, loss: type[Loss]) -> Description:
    """Return the description of the loss `name`."""
    parameters = {p.name: p.default for p in inspect.signature(loss).parameters.values() if p.name not in SIZES}
    return _description(name, parameters, {key: getattr(loss, key) for key in ("title", "paper", "year", *DEFAULTS)})


def of_source(name: str, path: Path) -> Description | None:
    """Return the same from the file of the loss; None if the file states anything other than by plain literals."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    losses = [n for n in body if isinstance(n, ast.ClassDef) and [ast.unparse(base) for base in n.bases] == ["Loss"]]
    if len(losses) != 1:
        return None
    stated, parameters = dict(DEFAULTS), None
    try:
        for node in losses[0].body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=key)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=key), value=ast.expr() as value)
                ):
                    if key in ("title", "paper", "year", *DEFAULTS):
                        stated[key] = _literal(value)
                case ast.FunctionDef(name="__init__"):
                    parameters = _parameters(node.args)
                case ast.FunctionDef() | ast.Expr():
                    pass
                case _:
                    return None
        return None if parameters is None else _description(name, parameters, stated)
    except (KeyError, ValueError):
        return None


def _description(name: str, parameters: dict[str, Any], stated: dict[str, Any]) -> Description:
    return Description(
        name=name,
        title=stated["title"],
        paper=stated["paper"],
        year=stated["year"],
        parameters=parameters,
        metrix=stated["mixed"] is not None,
        why_no_metrix=stated["why_no_metrix"],
        learnable=tuple(stated["rates"]),
        tuned_on=stated["tuned_on"],
        search_space=stated["search_space"],
    )


def _parameters(args: ast.arguments) -> dict[str, Any] | None:
    """Return the hyperparameters of `__init__` with their defaults; None if one has no default."""
    without = args.args[1 : len(args.args) - len(args.defaults)]  # the first is self
    if args.kwonlyargs or args.vararg or args.kwarg or args.posonlyargs or {a.arg for a in without} - {*SIZES}:
        return None
    given = args.args[len(args.args) - len(args.defaults) :]
    return {a.arg: _literal(d) for a, d in zip(given, args.defaults, strict=True) if a.arg not in SIZES}


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, or of a quotient of two. Raise ValueError for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _literal(node.left) / _literal(node.right)
    return ast.literal_eval(node)
