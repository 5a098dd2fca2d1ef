"""Read items in threads while earlier ones are used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None, ahead: int | None = None
) -> Generator[Result]:
    """Yield read(item) of each item in order, read in threads while earlier results are used.

    Threads suffice, because Pillow, NumPy and torch release the interpreter lock while they decode, copy and resize.
    The error of an item is raised in its turn. When the generator ends or is closed, no item is begun any more, and
    it returns once its threads have ended.

    threads: None means one for each processor of this process.
    ahead: at most how many items are read or wait while a result is used; None means eight for each thread.
    """
    threads = threads or len(os.sched_getaffinity(0))
    items, pool = iter(items), ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(read, item) for item in islice(items, 8 * threads if ahead is None else ahead))
        while waiting:
            waiting.extend(pool.submit(read, item) for item in islice(items, 1))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
