"""The spelling of labels: invisible characters, and labels that look alike."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

JOINERS = "\u200c\u200d"  # invisible, but part of the spelling in Persian, Hindi and others
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # invisible letters and marks
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Cs")
ALIKE = "differ only in case, spaces or Unicode form"
REMEDY = "Spell each class in one way, and give different classes clearly different names"
SPACES = " \u3000"  # the space, and the ideographic space


def utf8(text: str) -> bool:
    """Return whether a name can be written in UTF-8; file names can be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fault(label: str) -> str | None:
    """Return what is wrong with the spelling of a label; None if it is fine.

    A label must not begin or end with a space, nor contain invisible characters: control characters, zero-width or
    non-breaking spaces, byte order marks. Joiners inside a word are part of its spelling.
    """
    if label != label.strip():
        return f"{label!a} begins or ends with a space"
    inner = label[1:-1]
    for position, sign in enumerate(label):
        if sign in JOINERS and 0 < position <= len(inner):
            continue
        if _invisible(sign) or (unicodedata.category(sign) == "Zs" and sign not in SPACES):
            name = unicodedata.name(sign, "a control character")
            return f"{label!a} contains U+{ord(sign):04X} {name}, which is invisible"
    return None


def look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of labels that differ only in case, Unicode form, spaces or invisible characters."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in dict.fromkeys(labels):
        groups[_folded(label)].append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def shown(label: str) -> str:
    """Return a label in quotes, escaped if its spelling is not visible, such as a decomposed é."""
    visible = label.isprintable() and unicodedata.is_normalized("NFKC", label) and fault(label) is None
    return repr(label) if visible else ascii(label)


def _folded(label: str) -> str:
    """Return a label as it looks: in form NFKC, without case, invisible characters or extra spaces."""
    form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return " ".join("".join(sign for sign in form if sign.isspace() or not _invisible(sign)).split())


def _invisible(sign: str) -> bool:
    return unicodedata.category(sign) in INVISIBLE or sign in FILLERS or "\ufe00" <= sign <= "\ufe0f"
