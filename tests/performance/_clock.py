"""Seconds of a call, on a processor or a GPU, where several ways to do one thing take turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, the least and the most of them, and how many there were."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))


def take_turns(
    variants: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of one call of each variant in each round, after one call of each that warms up.

    A round calls a variant `repeat` times. On a processor the fastest of them counts, since other work only adds
    time. A GPU works through its queue while Python goes on, so there the calls are made in a row, the clock is read
    when the device has finished them all, and their mean counts.
    """
    for variant in variants.values():
        variant()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            seconds[name].append(_seconds(variant, repeat, device))
    return seconds


def _seconds(call: Callable[[], object], repeat: int, device: torch.device) -> float:
    wait_for(device)
    marks = [time.perf_counter()]
    for _ in range(repeat):
        call()
        marks.append(time.perf_counter())
    if device.type == "cpu":
        return min(b - a for a, b in pairwise(marks))
    wait_for(device)
    return (time.perf_counter() - marks[0]) / repeat


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished what it was given; a processor always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
