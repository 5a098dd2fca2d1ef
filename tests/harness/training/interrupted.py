"""Trials that are stopped half way, and what is left of them."""

from harness.training.pictures import Sources
from harness.training.trial import steps


def outcome(record):
    return record.test, record.selected_epoch, [(e.epoch, e.loss, e.validation) for e in record.curve]


def set_aside(place):
    return sorted(path.name for path in (place / "set_aside").glob("*"))


def begun(trial, place, data, epochs=1, **changes):
    """A trial that was stopped after so many epochs, and its output."""
    message = []
    running = steps(trial, Sources(place, data, **changes), message.append)
    for _ in range(epochs):
        next(running)
    running.close()
    return message
