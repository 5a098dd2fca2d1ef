"""Random streams: one number per purpose, the same for every arm.

A stream is named by its purpose, never by the arm or the trial. So two methods with the same seed see the same
split, batches, augmentations and initial weights, and a draw that is added in one place changes no other.

It is not named by the fold either: folds differ only in their training classes. All folds of a seed start from the
same weights, so the seed remains a single draw, and intervals are over seeds.
"""

import hashlib


def stream(seed: int, *purpose: str | int) -> int:
    """Return the 63-bit seed of the random stream (seed, purpose…).

    `purpose` are the words and numbers that name it, such as ("glyphs", "test_resnet", "batches", epoch).
    Equal names give equal streams on every machine and Python version; different names are independent.
    """
    text = "\x1f".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
