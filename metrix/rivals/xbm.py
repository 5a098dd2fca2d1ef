"""Cross-batch memory: embeddings of earlier batches are further candidates of every anchor.

    M     ← the `size` newest rows of (M, batch)
    total = mean ℓ(a)  +  weight · mean ℓ_M(a)          from step `warmup_steps` + 1 on

A row of M is a unit embedding without gradient, and its label. ℓ_M is the same loss with the candidates M, less the
row that the anchor itself has just written. Wang, Zhang, Huang, Scott, "Cross-batch memory for embedding learning",
CVPR 2020, eq. 4 and algorithm 1. The defaults are those of the authors' code (config/defaults.py, and
sample_config.yaml for the warm-up).

Deviations from the code: an anchor's own row is left out by its place, not as a similarity above 1 − 1e-5, so that
duplicates stay; rows of the same image from earlier steps are positives. The oldest rows are overwritten first, also
where the ring of rows wraps. ℓ_M has the reduction of the loss, where the code sums. The mining of a loss acts on its
clean term only.

It stands in for its loss: everything but `clean` is that of the loss. So Metrix around it mixes the batch, never M,
and adds its own term, ℓ + weight · ℓ_M + w · ℓ̃. The rows and their labels are buffers, which exist from the first
remembered batch on. The numbers of steps and of written rows are in the extra state, so that no step waits for the
device. Take the gradient of a step before the next one, which overwrites rows.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.chunks import CHUNK, Rows, mean_in_chunks, slices
from baselines.form import Batch, Loss, whole, within
from baselines.numerics import cosine
from metrix.rivals._form import Rival

AT_ONCE = 32 * CHUNK  # similarities to the memory; a chunk costs a matrix product with all of it


class XBM(Rival):
    """Cross-batch memory; `weight` ≥ 0 of its term, 0 for the loss alone; `size` ≥ 1 rows; `warmup_steps` ≥ 0."""

    title = "XBM"
    paper = "Wang et al., CVPR 2020"
    year = 2020
    remark = "published on SOP with 55,000 remembered rows, 92 % of its training images"
    search_space: ClassVar = {
        "weight": {"low": 0.1, "high": 2.0, "log": True},
        "size": {"choices": [1024, 8192, 55000]},
    }
    refuses: ClassVar = {
        "tuples": "has no formula over one anchor's candidates",
        "ranks": "has no formula over one anchor's candidates",
        "classes": "compares no two examples, so remembered ones have no place",
        "proxies": "compares no two examples, so remembered ones have no place",
    }
    published_with = ("contrastive", "triplet", "multi_similarity")
    before_metrix = True
    counts = ("remembered_rows",)

    def __init__(
        self,
        loss: Loss,
        weight: float = 1.0,
        size: int = 8192,
        warmup_steps: int = 1000,
        generator: torch.Generator | None = None,
    ):
        super().__init__(loss, generator)
        self.weight = within("weight", weight, 0.0)
        self.size = whole("size", size)
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        self.steps = self.written = 0
        self.rows: Tensor | None
        self.row_labels: Tensor | None
        self.register_buffer("rows", None)
        self.register_buffer("row_labels", None)
        self.register_load_state_dict_pre_hook(_make_room)  # pyright: ignore[reportUnknownMemberType] (untyped in torch)

    def __getattr__(self, name: str) -> Any:
        """Return what only the loss has, such as its formula."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "loss":  # not there yet
                raise
            return getattr(self.loss, name)

    def total(self, batch: Batch, drawn: None) -> Tensor:
        return self.clean(batch)

    def clean(self, batch: Batch) -> Tensor:
        """Return ℓ, in training plus weight · ℓ_M (scalar). A call in training is one step: it remembers the rows."""
        clean = self.loss.clean(batch)
        if not self.training:
            return clean
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self.count(0.0)
            return clean
        rows, labels, places = self._remember(batch)
        self.count(len(rows))
        return clean + self.weight * self._over(batch, rows, labels, places) if self.weight > 0 else clean

    def start(self) -> None:
        self.steps = max(self.steps, self.warmup_steps)

    def kept_bytes(self, batch_size: int, dim: int) -> int:
        return 4 * self.size * dim

    def get_extra_state(self) -> Tensor:
        """Return the numbers of steps and of written rows (2,); nothing is drawn here."""
        return torch.tensor([self.steps, self.written])

    def set_extra_state(self, state: Tensor) -> None:
        self.steps, self.written = (int(number) for number in state)

    def warnings(self) -> tuple[str, ...]:
        if self.means().get("remembered_rows", 1.0) > 0:
            return ()
        return (
            f"the memory never started: the tested weights are from within its warm-up of {self.warmup_steps} steps, "
            "so nothing but the rest of the arm trained them",
        )

    @classmethod
    def fitted(cls, options: Mapping[str, Any], images: int) -> dict[str, Any]:
        size = options.get("size", 8192)
        return {**options, "size": min(size, images)}

    @classmethod
    def useless(cls, options: Mapping[str, Any], steps: int) -> str | None:
        warmup = options.get("warmup_steps", 1000)
        return None if warmup < steps else f"xbm would never start: warmup_steps {warmup} of {steps} training steps"

    def _remember(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Write the batch over the oldest rows; return the rows, their labels, and the places just written.

        Of a batch larger than the memory, the last rows are written.
        """
        z, labels = batch.embeddings.detach()[-self.size :], batch.labels[-self.size :]
        if self.rows is None or self.row_labels is None:
            self.rows, self.row_labels = z.new_zeros(self.size, z.shape[1]), labels.new_zeros(self.size)
        places = torch.arange(self.written, self.written + len(z), device=z.device) % self.size
        self.rows.index_copy_(0, places, z)
        self.row_labels.index_copy_(0, places, labels)
        self.written += len(z)
        return self.rows[: self.written], self.row_labels[: self.written], places

    def _over(self, batch: Batch, rows: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        """Return mean ℓ_M (scalar) over these rows of the memory."""
        positive = batch.labels[:, None] == labels
        negative = ~positive
        positive[-len(places) :].scatter_(1, places[:, None], False)

        def losses(chunk: Rows | None, z: Tensor) -> Tensor:
            sides = (positive, negative) if chunk is None else (positive[chunk], negative[chunk])
            candidates = Batch(z, batch.host_labels, cosine(z, rows), sides=sides)
            weights = Loss.labelled(self.loss, candidates)  # the loss's own method may mine
            return self.loss.formula(candidates.similarities, *weights)

        return mean_in_chunks(losses, slices(len(positive), len(rows), AT_ONCE), (batch.embeddings,), (True,))


def _make_room(memory: XBM, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Create the buffers that a state to load contains."""
    for name in ("rows", "row_labels"):
        saved = state.get(prefix + name)
        shape = () if saved is None else (memory.size, *saved.shape[1:])
        setattr(memory, name, None if saved is None else saved.new_empty(shape, device=memory.totals.device))
