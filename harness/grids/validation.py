"""Pydantic's errors in the words of a grid file: one sentence for each wrong setting."""

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.errors import unknown

EXPECTED = {  # pydantic names Python's types here
    "tuple_type": "it should be a list, written [a, b]",
    "model_type": "it should be settings, written key: value",
    "dict_type": "it should be settings, written key: value",
    "string_type": "it should be text, in quotes if YAML reads it as something else",
    "bool_type": "it should be true or false",
    "int_type": "it should be a whole number",
    "float_type": "it should be a number",
    "missing": "an entry is missing",
    "string_pattern_mismatch": "it should be letters, digits, '.', '_' and '-', and begin with a letter or digit",
    "too_short": "it should have an entry",
}


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one sentence for each setting of `model` that pydantic rejects."""
    ends_by_start: dict[str, list[str]] = {}  # start of a sentence → its ends, if a value may have several types
    items = error.errors()
    shared = [item["loc"][1:] for item in items if item["loc"][:1] == ("metrix",)]
    for item in items:
        loc, kind, value = item["loc"], item["type"], item["input"]
        if (loc[:1] == ("levels",) and loc[2:] in shared) or (kind == "too_short" and value):
            continue  # it repeats another error: every level inherits the settings of `metrix`
        place, owner = _place(model, loc)
        context = item.get("ctx", {})
        unknown_key = kind in ("extra_forbidden", "invalid_key")  # the second: a key that is not text, such as 1
        where = "".join(f"{part}." for part in (loc if unknown_key else place))[:-1]
        start = f"{where}: " if where else ""
        choices = re.findall(r"'([^']*)'", context["expected"]) if kind == "literal_error" else []
        if unknown_key:
            assert owner is not None  # only settings refuse a key
            ends_by_start[start + unknown("setting", loc[-1], owner.model_fields.keys() - {"parts"})] = [""]
        elif kind == "missing" and isinstance(loc[-1], str):
            ends_by_start[f"{start}this setting is required"] = [""]
        elif kind == "value_error":
            ends_by_start[f"{start}{context['error']}"] = [""]
        elif len(choices) > 1 and isinstance(value, str):
            key = next((part for part in reversed(place) if isinstance(part, str)), "")
            word = {"at": "level", "floors": "floor"}.get(key, key)
            ends_by_start[start + unknown(word, value, choices)] = [""]
        else:
            expected = EXPECTED.get(kind, item["msg"].replace("Input should", "it should"))
            ends_by_start.setdefault(f"{start}{shown(value)} is not valid: ", []).append(expected)
    return [start + ", or ".join(ends) for start, ends in ends_by_start.items()]


def shown(value: Any) -> str:
    """Return a value as a file would write it, shortened to 80 characters."""
    if isinstance(value, bool | None):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _place(
    model: type[BaseModel] | None, loc: Sequence[str | int]
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """Return the part of an error's location that is written in the file, and the settings that belong there.

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
    """Return the settings class in an annotation, also in a list or next to None; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := section(part))), None)
