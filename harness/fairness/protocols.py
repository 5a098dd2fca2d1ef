"""Protocols: what a comparison keeps fixed, and which epoch a run reports, as frozen values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.runs.record import Epoch


@dataclass(frozen=True)
class Protocol:
    """What a protocol fixes. `version` changes whenever a number under it could change.

    validation_share  share of the training classes held out for validation; 0 trains on all of them
    rule              which epoch is reported: the best on validation, or the last
    metric            the validation score that selects
    watches_test      the test split is scored after every epoch, for the record only: nothing depends on it, but such
                      rows never share a table with rows whose test was read once
    reads_test        False for search trials, which never read the test
    sentence          its description in captions
    """

    name: str
    version: int
    validation_share: float
    rule: Literal["best validation", "last epoch"]
    sentence: str
    metric: str = "MAP@R"
    watches_test: bool = False
    reads_test: bool = True

    def choose(self, curve: Sequence[Epoch]) -> int:
        """Return the epoch to report, given the training curve with its validation scores and no test score."""
        return last(curve) if self.rule == "last epoch" else select(curve, self.metric)


_SELECTED = "checkpoint chosen by the highest MAP@R on validation classes disjoint from training and test; "
FAIR = Protocol("fair", 1, 0.2, "best validation", _SELECTED + "test split read once")
PAPER = Protocol(
    "paper",
    1,
    0.0,
    "last epoch",
    "all training classes, published settings, last epoch; the best test epoch is recorded beside it as customary in "
    "the literature, and chooses nothing",
    watches_test=True,
)
SEARCH = Protocol(
    "search", 1, 0.2, "best validation", "a trial of a search: validation only, test never read", reads_test=False
)
TUNED = Protocol(
    "tuned",
    1,
    0.2,
    "best validation",
    "settings of every arm chosen by an equal number of search trials on validation MAP@R, over spaces declared "
    "beforehand, with other seeds than these; " + _SELECTED + "test split read once",
)
PROTOCOLS = {protocol.name: protocol for protocol in (FAIR, PAPER, SEARCH, TUNED)}


def select(curve: Sequence[Epoch], metric: str = FAIR.metric) -> int:
    """Return the epoch of training with the highest validation `metric`, the earliest on ties."""
    return max(_trained(curve), key=lambda epoch: (epoch.validation[metric], -epoch.epoch)).epoch


def last(curve: Sequence[Epoch]) -> int:
    """Return the last epoch of training."""
    return _trained(curve)[-1].epoch


def _trained(curve: Sequence[Epoch]) -> list[Epoch]:
    """Return the epochs after the starting point, epoch 0. Raises ValueError if there is none."""
    trained = [epoch for epoch in curve if epoch.epoch > 0]
    if not trained:
        raise ValueError("there is no epoch to select from")
    return trained
