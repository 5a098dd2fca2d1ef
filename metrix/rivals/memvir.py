"""MemVir: classes of earlier steps stay as virtual classes, with their embeddings and their class vectors.

    state of step t:  its unit embeddings and unit class vectors, without gradient, and its labels y
    total = the clean loss of the rows and class vectors of step t and of steps t − k(g+1), k = 1 … N

Ko, Gu, Kim, "Learning with memory-based virtual classes for deep metric learning", ICCV 2021, and their code (N is
`num_steps`, g `gap`). The class y of k states ago is a class of its own, y + kC. All rows and all classes share one
mean and one denominator: class vectors are pushed away from old embeddings, and embeddings from old class vectors.
States exist from step `warmup_steps` + 1 on; as many of the N are used as exist. A state is what the network and the
loss gave in its step, before they were updated.

The centres of a class stay together, and SoftTriple's regulariser is over the current ones. Their Proxy-NCA, with its
own proxy in the denominator, is ProxyNCA++ here. The warm-up of 1,000 steps is ours: theirs is one of 40 epochs.

N(g + 1) states are kept in buffers, which exist from the first one on: 4 N(g+1)(n + C)d bytes in float32, in every
checkpoint too. Their labels and the number of steps are in the extra state, so that no step waits for the device.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines.form import Batch, Loss, whole
from baselines.numerics import cosine
from metrix.rivals._form import Rival

NOBODY = -1  # label of a row that a state of fewer rows than the largest does not have


class MemVir(Rival):
    """MemVir; `num_steps` ≥ 1 states are used, `gap` ≥ 0 steps are left out between two, `warmup_steps` ≥ 0."""

    title = "MemVir"
    paper = "Ko et al., ICCV 2021"
    year = 2021
    remark = "published with 2,000 epochs, where its baselines had 130"
    search_space: ClassVar = {"num_steps": {"choices": [1, 5, 20]}, "gap": {"choices": [10, 25, 100]}}
    refuses: ClassVar = {
        "pairs": "has no class vectors to remember",
        "tuples": "has no class vectors to remember",
        "ranks": "has no class vectors to remember",
    }
    published_with = ("norm_softmax", "proxy_nca_pp")
    counts = ("states_used",)

    def __init__(
        self,
        loss: Loss,
        num_steps: int = 5,
        gap: int = 100,
        warmup_steps: int = 1000,
        generator: torch.Generator | None = None,
    ):
        super().__init__(loss, generator)
        self.num_steps = whole("num_steps", num_steps)
        self.gap = whole("gap", gap, 0)
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        self.steps = 0
        self.row_labels = torch.full((self.num_steps * (self.gap + 1), 0), NOBODY)  # of each state, in host memory
        self.rows: Tensor | None
        self.vectors: Tensor | None
        self.register_buffer("rows", None)
        self.register_buffer("vectors", None)
        self.register_load_state_dict_pre_hook(_make_room)  # pyright: ignore[reportUnknownMemberType] (untyped in torch)

    def total(self, batch: Batch, drawn: None) -> Tensor:
        self.steps += 1
        step, slots = self.steps - 1 - self.warmup_steps, len(self.row_labels)
        if step < 0:
            self.count(0.0)
            return self.loss.clean(batch)
        back = [k * (self.gap + 1) for k in range(1, self.num_steps + 1)]
        used = [(step - steps) % slots for steps in back if steps <= step]
        self.count(len(used))
        larger = self._with_states(batch, used) if used else batch
        self._remember(batch, step % slots)  # after the oldest state was used, which it overwrites
        return self.loss.clean(larger)

    def start(self) -> None:
        self.steps = max(self.steps, self.warmup_steps + len(self.row_labels))

    def kept_bytes(self, batch_size: int, dim: int) -> int:
        return 4 * len(self.row_labels) * (batch_size * dim + self.loss.proxies.numel())

    def get_extra_state(self) -> Tensor:
        """Return the number of steps and the labels of all states, (1 + slots · rows,)."""
        return torch.cat([torch.tensor([self.steps]), self.row_labels.flatten()])

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state[0])
        self.row_labels = state[1:].cpu().view(len(self.row_labels), -1)

    def warnings(self) -> tuple[str, ...]:
        if self.means().get("states_used", 1.0) > 0:
            return ()
        return (
            "no virtual class was used: the tested weights are from before the first old state, at step "
            f"{self.warmup_steps + self.gap + 2}, so nothing but the loss trained them",
        )

    @classmethod
    def useless(cls, options: Mapping[str, Any], steps: int) -> str | None:
        warmup, gap = options.get("warmup_steps", 1000), options.get("gap", 100)
        if warmup + gap + 1 < steps:
            return None
        return f"memvir would never start: warmup_steps {warmup} and gap {gap} of {steps} training steps"

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the buffers of rows (slots, n, d) and class vectors (slots, c, d), with room for this batch."""
        z, slots = batch.embeddings, len(self.row_labels)
        if self.rows is None or self.vectors is None:
            assert batch.proxies is not None
            self.rows, self.vectors = z.new_zeros(slots, *z.shape), z.new_zeros(slots, *batch.proxies.shape)
            # After `start`, zeros stand for the states of steps that were none.
            label = NOBODY if self.steps == self.warmup_steps + 1 else 0
            self.row_labels = torch.full((slots, len(z)), label)
        if (more := len(z) - self.rows.shape[1]) > 0:
            self.rows = nn.functional.pad(self.rows, (0, 0, 0, more))
            self.row_labels = nn.functional.pad(self.row_labels, (0, more), value=NOBODY)
        return self.rows, self.vectors

    def _with_states(self, batch: Batch, slots: list[int]) -> Batch:
        """Return the batch with the rows and the class vectors of these states, nearest first."""
        places, classes = self._places(batch), self.loss.classes_in(batch)
        rows, labels, vectors = [batch.embeddings], [batch.host_labels], [batch.proxies]
        for k, slot in enumerate(slots, 1):
            there = self.row_labels[slot]
            there = there[there != NOBODY]
            rows.append(places[0][slot, : len(there)])
            labels.append(there + k * classes)
            vectors.append(places[1][slot])
        # The first centres of all classes come first, also with those of the states.
        centres = [each.view(-1, classes, each.shape[1]) for each in vectors if each is not None]
        sides = torch.cat(rows), torch.cat(centres, 1).flatten(0, 1)
        similarities = cosine(*(reversed(sides) if self.loss.anchors == "proxies" else sides))
        return replace(batch, similarities=similarities, host_labels=torch.cat(labels), sides=None, log_sides=None)

    @torch.no_grad()
    def _remember(self, batch: Batch, slot: int) -> None:
        assert batch.proxies is not None
        rows, vectors = self._places(batch)
        n = len(batch.embeddings)
        rows[slot, :n], vectors[slot] = batch.embeddings, batch.proxies
        self.row_labels[slot, :n], self.row_labels[slot, n:] = batch.host_labels, NOBODY


def _make_room(memory: MemVir, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Create the buffers that a state to load contains."""
    for name in ("rows", "vectors"):
        saved = state.get(prefix + name)
        setattr(memory, name, None if saved is None else saved.new_empty(saved.shape, device=memory.totals.device))
