"""Where a training step waits for the GPU, counted by the line of ours that makes it wait."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu.bench import bench_over, train
from tests.gpu.place import Place

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / part}/" for part in ("baselines", "metrix", "harness"))
ARMS = (
    "contrastive",
    "multi_similarity",
    "proxy_anchor",
    "soft_triple",
    "contrastive+embedding",
    "contrastive+feature",
    "contrastive+feature[stage=layer3]",
    "contrastive+input",
)
SAID = "called a synchronizing CUDA operation"


def test_waits_are_counted_by_place(place: Place) -> None:
    """Count the waits of a few steps of each arm; a wait that is made on purpose shows that they are seen."""
    with waits(place) as seen:
        torch.ones((), device=place.device).item()
    assert sum(seen.values()) == 1, f"one wait was made and {dict(seen)} were counted"
    steps = max(2, place.sizes.steps // 4)
    for arm in ARMS:
        trial = place.small(arm, epochs=1)
        bench = bench_over(place, trial, steps * trial.training.batch_size)
        with waits(place) as found:
            train(bench)
        place.note(f"waits a step, {arm}", sum(found.values()) / steps, "waits")
        for where, count in found.most_common():
            place.note(f"waits a step, {arm}: {where}", count / steps, "waits")


@contextmanager
def waits(place: Place) -> Iterator[Counter]:
    """What makes the processor wait for the device inside: how often, by file and line."""
    found: Counter = Counter()

    def count(message, category, filename, lineno, file=None, line=None) -> None:
        if SAID in str(message):
            found[_ours(filename, lineno)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with _Watched() if place.stand_in else _debugging():
            warnings.showwarning = count
            yield found


def _ours(filename: str, lineno: int) -> str:
    """The innermost line of this project that is being run; in the backward pass there may be none."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(OURS) and frame.filename != __file__:
            return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} ({frame.name})"
    return f"{Path(filename).name}:{lineno}"


@contextmanager
def _debugging() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Watched(TorchDispatchMode):
    """Warns, on a processor, of operations that would make it wait for a GPU."""

    WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in self.WAITING:
            warnings.warn(SAID, stacklevel=2)
        return operation(*args, **(kwargs or {}))
