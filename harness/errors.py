"""What every error for a user shares: its class, and names in a form that can be printed."""

import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user can put right: the message says what is wrong and what to do, in their words.

    The command line prints it as one sentence. Every other exception is a fault of the program.
    """


def printable(text: str) -> str:
    r"""The text in characters that any UTF-8 file or terminal takes: a byte that is not UTF-8 reads \xe9."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        sign.encode("unicode_escape").decode()
        if unicodedata.category(sign) in ("Cc", "Cs") and sign != "\n"
        else sign
        for sign in plain
    )


def some(words: Iterable[str], most: int = 5, of: int | None = None) -> str:
    """The first `most` words, for a message that can be printed: 'a, b, c and 4 more'.

    of: how many there are, where `words` are only the first of them.
    """
    words = list(words)
    more = (len(words) if of is None else of) - len(words[:most])
    return ", ".join(map(printable, words[:most])) + (f" and {more} more" if more > 0 else "")
