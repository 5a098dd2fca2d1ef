"""Trials that are stopped half way, and what is left of them."""

from harness.training.bench import Sources
from harness.training.trial import steps


def outcome(record):
    return record.test, record.selected_epoch, [(e.epoch, e.loss, e.validation) for e in record.curve]


def set_aside(place):
    return sorted(path.name for path in (place / "set_aside").glob("*"))


def begun(trial, place, data, epochs=1, **changes):
    """A trial that was stopped after so many epochs; what it said."""
    said = []
    running = steps(trial, Sources(place, data, **changes), said.append)
    for _ in range(epochs):
        next(running)
    running.close()
    return said
