"""The GPU's memory: what a record says of it, and a trial that runs out of it."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import SkipTest

import torch

from harness.config import Trial
from harness.runs.record import Record
from harness.training.embedder import Embedder
from harness.training.trial import CHUNKS, kind_of
from tests.gpu.child import next_message, started
from tests.gpu.place import Place

GB = 1e9


def test_the_peak_memory_is_the_one_recorded(place: Place) -> None:
    """The record's peak is the trial's own, and lies below what the device had in use meanwhile."""
    empty(place)
    with watched(place) as used:
        large = place.run(place.large(place.sizes.networks[0]), "peak")
    place.note("peak memory of a ResNet trial, as recorded", large.cost.peak_gb, "GB")
    if place.stand_in:
        assert large.cost.peak_gb > 0.1
        return
    assert large.cost.peak_gb == torch.cuda.max_memory_allocated(place.device) / GB
    reserved = torch.cuda.max_memory_reserved(place.device) / GB
    place.note("the same, as the allocator held it", reserved, "GB")
    place.note("the same, as the device had it in use", used["peak_gb"], "GB")
    assert large.cost.peak_gb <= reserved <= 1.02 * used["peak_gb"] + 0.2
    empty(place)
    small = place.run(place.small(), "peak")
    place.note("peak memory of a small trial after it", small.cost.peak_gb, "GB")
    assert small.cost.peak_gb < 0.25 * large.cost.peak_gb, "it has the peak of the trial before it"


def test_a_trial_out_of_memory_goes_on_in_chunks(place: Place) -> None:
    """Half of the memory that the whole batch takes is enough for a quarter of it at a time; the scores stay."""
    trial = place.large(place.sizes.networks[0])
    whole = place.run(trial, "whole")
    with limited(place, enough_for_chunks(whole), trial):
        parts = place.run(trial, "parts")
    compared(place, trial, whole, parts, "in chunks")


def test_another_process_takes_most_of_the_memory(place: Place) -> None:
    """Beside it a trial of its own GPU goes on in chunks; one that shares the GPU stops and says why."""
    trial = place.large(place.sizes.networks[0])
    whole = place.run(trial, "alone-first")
    empty(place)
    left = enough_for_chunks(whole) + 0.3 * GB  # for what the allocator rounds up and convolutions work in
    with started("hold", int(left), place.device) as child:
        held = next_message(child)["held"]
        place.note("memory held by another process", held / GB, "GB")
        with limited(place, None, trial):
            assert failure(partial(place.run, trial, "beside", gpu_share=0.5)) == "out of memory"
            empty(place)
            parts = place.run(trial, "beside")
    compared(place, trial, whole, parts, "beside another process")


def failure(call: Callable[[], object]) -> str | None:
    """What kind of failure a call ends in; None for none. The error goes, and with it what its frames hold."""
    try:
        call()
    except Exception as error:
        return kind_of(error)
    return None


def compared(place: Place, trial: Trial, whole: Record, parts: Record, where: str) -> None:
    """Check that a trial went on in chunks to about the same scores, and note what that cost."""
    rows = trial.training.batch_size // CHUNKS
    assert parts.provenance["chunk_rows"] == rows, f"it ran in chunks of {parts.provenance['chunk_rows']}"
    assert any(f"the forward ran in chunks of {rows} rows" in note for note in parts.notes), parts.notes
    place.note(f"training {where} ÷ whole", parts.cost.train_s / whole.cost.train_s, "")
    place.note(f"peak memory {where}, as recorded", parts.cost.peak_gb, "GB")
    place.note(f"peak memory of the whole batch, before {where}", whole.cost.peak_gb, "GB")
    assert place.stand_in or parts.cost.peak_gb < 0.8 * whole.cost.peak_gb
    assert abs(parts.test["R@1"] - whole.test["R@1"]) < 0.03


def enough_for_chunks(whole: Record) -> float:
    """Bytes in which a quarter of a batch fits, and the whole batch does not.

    Weights, their gradients and two moments of the optimiser remain; of the rest, the activations, half is left.
    """
    fixed = 4 * 4 * whole.cost.parameters
    return fixed + 0.5 * max(0.0, whole.cost.peak_gb * GB - fixed)


@contextmanager
def limited(place: Place, most: float | None, trial: Trial) -> Iterator[None]:
    """This process gets no more than `most` bytes of the GPU; None leaves it what there is.

    On a stand-in the network refuses to train more rows at once than a chunk has.
    """
    empty(place)
    if place.stand_in:
        with refusing(trial.training.batch_size // CHUNKS):
            yield
        return
    if most is None:
        yield
        return
    total = torch.cuda.get_device_properties(place.device).total_memory
    torch.cuda.set_per_process_memory_fraction(most / total, place.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place.device)


@contextmanager
def refusing(rows: int) -> Iterator[None]:
    """Every network says that memory is short when it is to train more than so many rows at once."""
    forward = Embedder.forward

    def refuse(self: Embedder, images: torch.Tensor) -> torch.Tensor:
        if len(images) > rows and self.training:
            raise torch.OutOfMemoryError(f"no memory for {len(images)} rows, on a stand-in")
        return forward(self, images)

    Embedder.forward = refuse
    try:
        yield
    finally:
        Embedder.forward = forward


def empty(place: Place) -> None:
    """Give back what this process holds and does not use."""
    gc.collect()
    if not place.stand_in:
        torch.cuda.empty_cache()


@contextmanager
def watched(place: Place) -> Iterator[dict[str, float]]:
    """The most of the device's memory that was in use inside beyond the start, looked at every few milliseconds."""
    if place.stand_in:
        yield {}
        return
    used, over = {"peak_gb": 0.0}, threading.Event()
    if (start := torch.cuda.mem_get_info(place.device)[0]) == 0:
        raise SkipTest("the device says nothing of its memory")

    def look() -> None:
        while not over.is_set():
            free, _ = torch.cuda.mem_get_info(place.device)
            used["peak_gb"] = max(used["peak_gb"], (start - free) / GB)
            time.sleep(0.002)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()
