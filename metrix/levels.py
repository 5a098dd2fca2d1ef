"""The levels that a benchmark can compare: those of Metrix first, then the rivals. It works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from baselines.description import stated_in
from metrix import rivals
from metrix.rivals import Description

METRIX = {  # its levels
    "embedding": "mixes embeddings",
    "feature": "mixes feature maps inside the network",
    "input": "mixes images",
}
PAPER, YEAR = "Venkataramanan et al., ICLR 2022", 2022


def names() -> tuple[str, ...]:
    """Return the names of all levels: those of Metrix, then the rivals in alphabetical order."""
    return (*METRIX, *rivals.names())


@cache
def describe(name: str) -> Description:
    """Return the description of a level. Raise ValueError for an unknown one.

    The search space of Metrix is empty here: a grid sets it (`search.weight_range`, `search.alpha_range`).
    """
    if name not in METRIX:
        return rivals.describe(name)
    read = stated_in(Path(__file__).with_name("objective.py"), "nn.Module", {}, ("loss", "at", "generator"))
    assert read is not None  # its arguments have plain defaults
    return Description(
        name=name,
        title=f"Metrix, {name}",
        summary=METRIX[name],
        paper=PAPER,
        year=YEAR,
        parameters=read[0],
        tuned_on=None,
        remark="",
        search_space={},
        refuses={},
        published_with=("contrastive", "multi_similarity", "proxy_anchor"),
        before_metrix=False,
    )


def refusal(name: str, loss: str, hyperparameters: Mapping[str, Any] | None = None, **options: Any) -> str | None:
    """Return why a level with these options has no form for a loss, or None if it has one.

    `hyperparameters` are those of the loss that are not defaults. This function needs torch.
    """
    if name in METRIX:
        from metrix.forms import refusal

        return refusal(loss, at=name, **options)
    return rivals.refusal(name, loss, hyperparameters, **options)
