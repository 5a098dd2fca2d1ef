"""Protocols: how a run chooses what it reports, as frozen values, and the choice itself as a function."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.record import Epoch


@dataclass(frozen=True)
class Protocol:
    """What a protocol fixes. `sentence` is what a caption says of it."""

    name: str
    version: int
    validation_share: float
    metric: str
    sentence: str


FAIR = Protocol(
    name="fair",
    version=1,
    validation_share=0.2,
    metric="MAP@R",
    sentence="checkpoint chosen by the highest MAP@R on validation classes disjoint from training and test; "
    "test split read once",
)
PROTOCOLS = {protocol.name: protocol for protocol in (FAIR,)}


def select(curve: Sequence[Epoch], metric: str = FAIR.metric) -> int:
    """The epoch with the highest validation `metric`, the earliest on ties. Sees validation scores only."""
    if not curve:
        raise ValueError("there is no epoch to select from")
    return max(curve, key=lambda epoch: (epoch.validation[metric], -epoch.epoch)).epoch
