"""The notation of grids: YAML, and the options of an arm in brackets."""

import math
import re
from typing import Any

import yaml


def parse(text: str) -> tuple[Any, list[str]]:
    """Return the content of a YAML text, and a sentence for each problem with it."""
    try:
        loader = _Loader(text)
        return loader.get_single_data(), loader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(filter(None, (error.context, error.problem)))
        if "\\t" in reason:
            reason += "; indent with spaces"
        if "expected a single document" in reason:
            reason = "there are several documents (---); a grid is one"
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return None, [f"this is not YAML: {place}{reason}"]
    except Exception as error:  # PyYAML's constructors raise many kinds of errors on a wrong tag
        return None, [f"this is not YAML: {error}".replace("\n", " ")]


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, 010 is not eight, 1:30 is not ninety, 2020-01-01 is text.

    `problems` lists keys that occur twice in one mapping, of which YAML would use the last.
    """

    def __init__(self, text: str):
        self.problems: list[str] = []
        super().__init__(text)

    def compose_node(self, parent, index):
        node = super().compose_node(parent, index)
        assert node is not None
        if node.end_mark is None:  # an alias of a node that is not complete yet
            raise yaml.MarkedYAMLError(problem="an anchor contains itself", problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # a mapping may merge several others
                continue
            if (before := first.setdefault(key.value, key)) is not key:
                lines = f"line {before.start_mark.line + 1} and line {key.start_mark.line + 1}"
                self.problems.append(f"{key.value}: this key occurs twice, in {lines}")
        return node


_NUMBERS = {
    "int": re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    sign: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] not in (*_NUMBERS, "timestamp")]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, list("-+.0123456789"))


def brackets(options: dict[str, Any]) -> str:
    """Return options in the brackets of an arm, `[margin=0.3,mining=hard]`; "" if there are none."""
    return "[" + ",".join(f"{key}={_written(value)}" for key, value in options.items()) + "]" if options else ""


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def options(text: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return the options in the brackets of an arm, and a sentence if one is wrong."""
    values: dict[str, Any] = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, written = part.partition("=")
        value, problems = (None, []) if written.strip() == "none" else parse(written)
        if not equals:
            problems = [f"{part!r} is not of the form key=value"]
        elif key.strip() in values:
            problems = [f"{key.strip()} is given twice"]
        elif isinstance(value, float) and not math.isfinite(value):
            problems = [f"{key.strip()} is {value}; a number must be finite"]
        if problems:
            return values, problems
        values[key.strip()] = value
    return values, []
