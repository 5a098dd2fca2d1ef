"""Random streams: one number per purpose, the same for every arm.

A stream is named by what it is for, never by the arm or the trial, so two methods with the same seed see the
same split, batches, augmentations and initial weights, and a draw added in one place moves nothing elsewhere.

Nor by the fold: a fold is other training classes and nothing else. Its batches are drawn over other images anyway;
that all folds of a seed begin with the same weights keeps the seed one draw, which is what intervals are over, and
leaves the classes as the only thing that folds differ in.
"""

import hashlib


def stream(seed: int, *purpose: str | int) -> int:
    """The 63-bit seed of the random stream (seed, purpose…).

    `purpose` are the words and numbers that name it, such as ("glyphs", "test_resnet", "batches", epoch).
    Equal names give equal streams on every machine and Python version; different names are independent.
    """
    text = "\x1f".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
