"""SiMix: virtual examples of a class, by mixing similarities instead of images.

    v_ij = λ_ij z_i + (1−λ_ij) z_j,  λ_ij ~ U(0, 1),  for every unordered pair i < j of one class

Patel, Tolias, Matas, "Recall@k surrogate loss with large batches and similarity mixup", CVPR 2022, and their code.
The virtual examples are not re-normalised. They join the batch in every role, anchors included, and the objective is
the clean loss of this larger batch. Its similarities are A S Aᵀ, where A holds the weights of the clean examples in
each row, so no embedding is formed. The similarity of v to itself is ‖v‖². Its parents are positives like others.
Gradients reach both, also through v as an anchor.

Deviation: any number of examples of a class; their code has 3, 4 and 6. Decisions: a number of neighbours, such as
the k of recall, is limited by the clean rows, as without virtual ones. `triplet` and `margin` read the similarities
as if v were a unit vector.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from baselines.form import Batch, moved
from metrix.rivals._form import Rival
from metrix.rivals._similarities import mixed

Pairs = tuple[Tensor, Tensor, Tensor]


class SiMix(Rival):
    """SiMix; it has no option."""

    title = "SiMix"
    paper = "Patel et al., CVPR 2022"
    year = 2022
    refuses: ClassVar = {
        "classes": "compares examples with class vectors only; two virtual examples never meet",
        "proxies": "compares examples with class vectors only; two virtual examples never meet",
    }
    published_with = ("recall_at_k",)
    counts = ("virtual_rows",)

    def draw(self, batch: Batch) -> Pairs:
        """Return the pairs i < j of one class, in host memory and in the order of rows, and their λ, (m,) each."""
        first, second = (batch.host_labels[:, None] == batch.host_labels).triu(1).nonzero(as_tuple=True)
        lam = torch.rand(len(first), generator=self.generator, device=self.generator.device, dtype=torch.float64)
        return first, second, moved(lam.to(batch.similarities.dtype), batch.similarities.device)

    def total(self, batch: Batch, drawn: Pairs) -> Tensor:
        first, second, lam = drawn
        self.count(len(first))
        clean, labels = batch.similarities, torch.cat([batch.host_labels, batch.host_labels[first]])
        first, second = moved(first, clean.device), moved(second, clean.device)
        rows = mixed(clean, first, second, lam[:, None])
        columns = rows.T.contiguous()
        virtual = mixed(columns, first, second, lam[:, None])
        similarities = torch.cat([torch.cat([clean, columns], 1), torch.cat([rows, virtual], 1)])
        return self.loss.clean(
            replace(batch, similarities=similarities, host_labels=labels, sides=None, log_sides=None)
        )

    def warnings(self) -> tuple[str, ...]:
        if self.means().get("virtual_rows") != 0:
            return ()
        return (
            "no batch held two examples of a class, so no virtual example was made: the row equals the loss alone",
        )
