"""Metrix: mixup for deep metric learning (Venkataramanan et al., ICLR 2022), around any loss of `baselines`."""

from metrix.analysis import Positivity, alignment, positivity, uniformity, utilization
from metrix.forms import refusal
from metrix.objective import Metrix

__all__ = ["Metrix", "Positivity", "alignment", "positivity", "refusal", "uniformity", "utilization"]
