"""Names as people write them: what cannot be seen in them, and which of them would be taken for one another."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

JOINERS = "\u200c\u200d"  # unseen, but part of the spelling of Persian, Hindi and others
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # unseen, though Unicode counts them as letters or marks
UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
ALIKE = "differ only in case, blanks or Unicode form"
REMEDY = "Spell one class in one way, and let two classes differ in more"
BLANKS = " \u3000"  # the blank, and that of East Asian scripts


def utf8(text: str) -> bool:
    """Whether a name can be written in UTF-8; a file's name can be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fault(label: str) -> str | None:
    """Why nobody would spell a label this way on purpose; None where there is no reason.

    It begins or ends with a blank, or holds characters that cannot be seen: control characters, blanks of no width
    or that do not break, byte order marks. Joiners inside a word are part of its spelling.
    """
    if label != label.strip():
        return f"{label!a} begins or ends with a blank"
    inner = label[1:-1]
    for place, sign in enumerate(label):
        if sign in JOINERS and 0 < place <= len(inner):
            continue
        if _unseen(sign) or (unicodedata.category(sign) == "Zs" and sign not in BLANKS):
            name = unicodedata.name(sign, "a control character")
            return f"{label!a} holds U+{ord(sign):04X} {name}, which is invisible"
    return None


def look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """The groups of different labels that differ in case, Unicode form, blanks or unseen characters alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in dict.fromkeys(labels):
        groups[_folded(label)].append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def shown(label: str) -> str:
    """A label in quotes; escaped where its spelling cannot be seen, as that of a decomposed é."""
    seen = label.isprintable() and unicodedata.is_normalized("NFKC", label) and fault(label) is None
    return repr(label) if seen else ascii(label)


def _folded(label: str) -> str:
    """What is left of a label for an eye: compatibility form (NFKC), no case, single blanks, nothing unseen."""
    form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return " ".join("".join(sign for sign in form if sign.isspace() or not _unseen(sign)).split())


def _unseen(sign: str) -> bool:
    return unicodedata.category(sign) in UNSEEN or sign in FILLERS or "\ufe00" <= sign <= "\ufe0f"
