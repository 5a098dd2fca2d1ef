"""Metrix: mixup for deep metric learning (Venkataramanan et al., ICLR 2022), around any loss of `baselines`."""

from metrix.objective import Metrix, refusal

__all__ = ["Metrix", "refusal"]
