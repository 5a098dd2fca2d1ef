"""What every error for a user shares: its class, and the wording of names that do not exist or are too many."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something that the user can fix: the message says what is wrong and what to do, in their words.

    The command line prints it as one sentence. Every other exception is a bug in the program.
    """


class GridError(UserError):
    """A grid or an arm that cannot run; `problems` holds one sentence for each mistake found."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(f"{where}: " + "\n  ".join(["cannot run:", *problems]))


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist: `no loss named 'x'; did you mean 'y'?`"""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if near:
        return f"no {kind} named {str(name)!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"no {kind} named {str(name)!r}; there are: {some(known, 20) or 'none'}"


def printable(text: str) -> str:
    r"""Return the text in characters that any UTF-8 file or terminal takes: a byte that is not UTF-8 reads \xe9."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        sign.encode("unicode_escape").decode()
        if unicodedata.category(sign) in ("Cc", "Cs") and sign != "\n"
        else sign
        for sign in plain
    )


def some(words: Iterable[str], most: int = 5, of: int | None = None) -> str:
    """Return the first `most` words in a form that can be printed: 'a, b, c and 4 more'.

    `of` is how many there are, where `words` holds only the first of them.
    """
    words = list(words)
    more = (len(words) if of is None else of) - len(words[:most])
    return ", ".join(map(printable, words[:most])) + (f" and {more} more" if more > 0 else "")
