"""Pydantic's findings in the words of a grid file: one sentence for each setting that is wrong."""

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.errors import unknown

EXPECTED = {  # in the words of a file, where pydantic names Python's types
    "tuple_type": "it should be a list, written [a, b]",
    "model_type": "it should be settings, written key: value",
    "dict_type": "it should be settings, written key: value",
    "string_type": "it should be a text, in quotes where YAML reads something else",
    "bool_type": "it should be true or false",
    "int_type": "it should be a whole number",
    "float_type": "it should be a number",
    "missing": "an entry is missing",
    "string_pattern_mismatch": "it should be letters, digits, '.', '_' and '-', and begin with a letter or digit",
    "too_short": "it should have an entry",
}


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one sentence for each setting of `model` that pydantic refuses, whatever types it may have."""
    found: dict[str, list[str]] = {}  # start of a sentence → its ends, where a value may have several types
    items = error.errors()
    shared = [item["loc"][1:] for item in items if item["loc"][:1] == ("metrix",)]
    for item in items:
        loc, kind, value = item["loc"], item["type"], item["input"]
        if (loc[:1] == ("levels",) and loc[2:] in shared) or (kind == "too_short" and value):
            continue  # it results from another finding: every level takes what `metrix` sets
        place, owner = _place(model, loc)
        context = item.get("ctx", {})
        unknown_key = kind in ("extra_forbidden", "invalid_key")  # the second: a key that is no text, such as 1
        where = "".join(f"{part}." for part in (loc if unknown_key else place))[:-1]
        start = f"{where}: " if where else ""
        choices = re.findall(r"'([^']*)'", context["expected"]) if kind == "literal_error" else []
        if unknown_key:
            assert owner is not None  # only settings refuse a key
            found[start + unknown("setting", loc[-1], owner.model_fields.keys() - {"parts"})] = [""]
        elif kind == "missing" and isinstance(loc[-1], str):
            found[f"{start}this setting is needed"] = [""]
        elif kind == "value_error":
            found[f"{start}{context['error']}"] = [""]
        elif len(choices) > 1 and isinstance(value, str):
            key = next((part for part in reversed(place) if isinstance(part, str)), "")
            word = {"at": "level", "floors": "floor"}.get(key, key)
            found[start + unknown(word, value, choices)] = [""]
        else:
            expected = EXPECTED.get(kind, item["msg"].replace("Input should", "it should"))
            found.setdefault(f"{start}{shown(value)} does not fit: ", []).append(expected)
    return [start + ", or ".join(ends) for start, ends in found.items()]


def shown(value: Any) -> str:
    """Return a value as the file would write it, shortened to 80 characters."""
    if isinstance(value, bool | None):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _place(
    model: type[BaseModel] | None, loc: Sequence[str | int]
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """Return the part of a finding's place that is written in the file, and the settings that belong there.

    The rest of `loc` names one type of several, or an unknown key.
    """
    place: list[str | int] = []
    for part in loc:
        if isinstance(part, str):
            if model is None or part not in model.model_fields:
                break
            model = section(model.model_fields[part].annotation)
        place.append(part)
    return tuple(place), model


def section(annotation: Any) -> type[BaseModel] | None:
    """Return the settings that an annotation holds, in a list or beside None; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := section(part))), None)
