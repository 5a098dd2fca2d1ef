"""The class of all errors that a user can fix, and the wording of unknown names and of long lists."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """An error that the user can fix: the message says what is wrong and what to do, in the user's words.

    The command line prints it as one sentence. Every other exception is a bug in the program.
    """


class GridError(UserError):
    """Raised for a grid or an arm that cannot run; `problems` has one sentence for each mistake."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(f"{where}: " + "\n  ".join(["cannot run:", *problems]))


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist: `no loss named 'x'; did you mean 'y'?`"""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if near:
        return f"no {kind} named {str(name)!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"no {kind} named {str(name)!r}; there are: {first_few(known, 20) or 'none'}"


def printable(text: str) -> str:
    r"""Return the text in characters that any UTF-8 file or terminal accepts; a byte that is not UTF-8 is escaped."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs") and character != "\n"
        else character
        for character in plain
    )


def first_few(words: Iterable[str], most: int = 5, of: int | None = None) -> str:
    """Return the first `most` words in a printable form: 'a, b, c and 4 more'.

    `of` is the number of all words, if `words` contains only the first of them.
    """
    words = list(words)
    more = (len(words) if of is None else of) - len(words[:most])
    return ", ".join(map(printable, words[:most])) + (f" and {more} more" if more > 0 else "")
