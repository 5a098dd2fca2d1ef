"""Metrix: mixup for deep metric learning (Venkataramanan et al., ICLR 2022), around any loss of `baselines`.

Other ways to mix are in `metrix.rivals`. The names below are imported on first use, since they need torch and the
register of levels does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metrix.analysis import Positivity, alignment, positivity, uniformity, utilization
    from metrix.forms import refusal
    from metrix.objective import Metrix

__all__ = ["Metrix", "Positivity", "alignment", "positivity", "refusal", "uniformity", "utilization"]

_HOME = {"Metrix": "objective", "refusal": "forms"}


def __getattr__(name: str) -> Any:
    if name == "rivals":
        return import_module("metrix.rivals")
    if name not in __all__:
        raise AttributeError(f"metrix has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"metrix.{_HOME.get(name, 'analysis')}"), name)
