"""`--set key=value`: change a setting of a grid file before it is validated."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from harness.errors import unknown
from harness.grids.notation import parse


def apply(content: dict[str, Any], text: str, model: type[BaseModel]) -> str | None:
    """Apply one `key=value` to the content of a `model`; return a sentence if that is impossible."""
    key, equals, written = text.partition("=")
    if not equals or not key:
        return f"--set {text or repr(text)}: expected key=value, such as epochs=20"
    if not (matches := _matches(key, model)):
        leaves = set(_leaves(model))
        return f"--set {text}: " + unknown("setting", key, leaves | {leaf.rpartition(".")[2] for leaf in leaves})
    if len(matches) > 1:
        return f"--set {text}: {key} could be {' or '.join(matches)}"
    value, problems = parse(written)
    if problems:
        return f"--set {text}: {'; '.join(problems)}"
    *parents, last = matches[0].split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            return None  # validation reports that it is not a section
    content[last] = value
    return None


def conflicts(overrides: Iterable[str], model: type[BaseModel]) -> list[str]:
    """Return a sentence for each setting with two different values, of which one would be lost."""
    given: dict[str, str] = {}
    problems = []
    for text in overrides:
        key, _, value = text.partition("=")
        setting = ", ".join(_matches(key, model)) or key
        if given.setdefault(setting, value) != value:
            problems.append(f"--set {text}: {setting} is also set to {given[setting]}; set it once")
    return problems


def _matches(key: str, model: type[BaseModel]) -> list[str]:
    """Return the dotted keys that a key on the command line may mean, in full or by its last part."""
    leaves = list(_leaves(model))
    return [leaf for leaf in leaves if leaf == key] or [leaf for leaf in leaves if leaf.rpartition(".")[2] == key]


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Yield every dotted key that an override may set."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        elif name != "parts":  # set by `include`
            yield f"{prefix}{name}"
