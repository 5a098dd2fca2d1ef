"""Triplet loss: a positive must be more similar than a negative, by a margin.

    L = mean over active triplets of [ s(a,n) − s(a,p) + m ]₊

Schroff, Kalenichenko, Philbin, "FaceNet: a unified embedding for face recognition and clustering", CVPR 2015.
Deviation: similarities, so the margin is half of theirs on squared distances of unit vectors. `mining`: "all"
triplets; "semihard", all with s(a,p) − m < s(a,n) < s(a,p); "hard", the most similar negative for each anchor and
positive.
"""

from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Batch, Loss, moved, one_of, within


class Triplet(Loss):
    """Triplet loss; margin m in [0, 2], mining "all", "semihard" or "hard"."""

    title = "Triplet"
    paper = "Schroff et al., CVPR 2015"
    year = 2015
    kind = "tuples"
    search_space: ClassVar = {
        "margin": {"low": 0.01, "high": 0.5, "log": True},
        "mining": {"choices": ["all", "semihard", "hard"]},
    }
    mixed = None
    why_no_metrix = (
        "each of its terms is a hinge on one positive and one negative together, so it is not a sum over single "
        "labelled examples in which a label could be mixed"
    )

    def __init__(self, margin: float = 0.1, mining: str = "all"):
        super().__init__()
        self.margin = within("margin", margin, 0.0, 2.0)
        self.mining = one_of("mining", mining, ("all", "semihard", "hard"))

    def clean(self, batch: Batch) -> Tensor:
        s = batch.similarities
        negative = self.sides(batch)[1]
        pairs = self.host_sides(batch)[0].nonzero(as_tuple=True)
        anchors, positives = (moved(x, s.device) for x in pairs)
        near = s[anchors, positives][:, None]
        far = s.index_select(0, anchors).masked_fill(~negative.index_select(0, anchors), -torch.inf)
        if self.mining == "hard" and len(anchors):
            far = far.amax(1, keepdim=True)
        if self.mining == "semihard":
            far = far.masked_fill(far >= near, -torch.inf)
        terms = (far - near + self.margin).relu()
        return terms.sum() / (terms > 0).sum().clamp(min=1)
