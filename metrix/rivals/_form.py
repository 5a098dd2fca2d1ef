"""What every rival is: a wrapper of a loss that adds virtual examples to it, or remembered ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import baselines
from baselines.counts import Counted
from baselines.form import Batch, Loss, refuse_indices
from baselines.numerics import full_precision


class Rival(Counted):
    """A published way to mix, around a loss.

    A subclass takes its options as arguments with defaults, keeps each as an attribute of the same name, and
    implements `total`. It states its paper, its search space, and the kinds of loss without a form (`refuses`).
    Outside of training the objective is the clean loss. There is no second derivative.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    tuned_on: ClassVar[str | None] = None  # where the defaults were tuned
    remark: ClassVar[str] = ""  # what a table with it must say, such as that it was published with larger batches
    search_space: ClassVar[dict[str, dict[str, Any]]] = {}
    refuses: ClassVar[dict[str, str]] = {}  # the kinds of loss without a form, with the reason
    published_with: ClassVar[tuple[str, ...]] = ()  # the losses that it was published with
    before_metrix: ClassVar[bool] = False  # whether it stands in for its loss, so that Metrix can wrap it
    mixed_rows = 0  # rows of the last step that passed through the network besides the clean ones

    def __init__(self, loss: Loss, generator: torch.Generator | None = None):
        super().__init__()
        if why_not := self.refusal(loss):
            raise ValueError(why_not)
        self.loss = loss
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed() & (2**63 - 1))

    def draw(self, batch: Batch) -> Any:
        """Draw every random number of one step from the generator; None if nothing is random."""
        return None

    def total(self, batch: Batch, drawn: Any) -> Tensor:
        """Return the objective (scalar) of a checked batch with these random numbers. It draws none itself."""
        raise TypeError(f"{type(self).__name__} has no objective; write total(batch, drawn)")

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:
        """Return the objective (scalar) of embeddings (n, d) and labels (n,); in eval mode, the clean loss.

        `indices_tuple` exists for training loops that pass one; it must be None.
        """
        refuse_indices(indices_tuple)
        with full_precision(embeddings.device):
            batch = self.loss.batch(embeddings, labels)
            return self.total(batch, self.draw(batch)) if self.training else self.loss.clean(batch)

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the objective (scalar) of a network on images (n, 3, h, w) and labels (n,)."""
        return self(model(images), labels)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the learnable tensors of the loss as optimiser groups, each with lr times its own multiplier."""
        return self.loss.parameter_groups(lr)

    def get_extra_state(self) -> Tensor:
        """Return the state of the generator (uint8), so that a resumed training draws the same numbers."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore a state that `get_extra_state` returned."""
        self.generator.set_state(state.cpu())

    def effective(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Return the options as they are used; `model` is accepted as `Metrix.effective` accepts it."""
        own = [name for name in inspect.signature(type(self)).parameters if name not in ("loss", "generator")]
        return {name: getattr(self, name) for name in own}

    def start(self) -> None:
        """End a warm-up at once, such as to measure the memory of a whole step."""

    def kept_bytes(self, batch_size: int, dim: int) -> int:
        """Return the size in bytes of what it keeps between steps, for float32 embeddings (batch_size, dim)."""
        return 0

    @classmethod
    def refusal(
        cls, loss: str | nn.Module, hyperparameters: Mapping[str, Any] | None = None, **options: Any
    ) -> str | None:
        """Return why it does not take a loss, or None if it does.

        A loss is given itself, or as a name with its `hyperparameters`. `options` are those of the rival; they
        restrict nothing here.
        """
        kind, own = baselines.find(loss) if isinstance(loss, str) else type(loss), cls.__module__.rpartition(".")[2]
        if not issubclass(kind, Loss):
            return f"{own} does not take {kind.__name__}: it is not one of the losses of `baselines`"
        if kind.kind in cls.refuses:
            return f"{own} does not take {kind.__module__.rpartition('.')[2]}: it {cls.refuses[kind.kind]}"
        return None

    @classmethod
    def mixes_at(cls, **options: Any) -> Literal["embedding", "input"]:
        """Return where it mixes with these options; at the input its virtual examples pass through the network."""
        return "embedding"

    @classmethod
    def fitted(cls, options: Mapping[str, Any], images: int) -> dict[str, Any]:
        """Return the options to use with a training set of this many images."""
        return dict(options)

    @classmethod
    def useless(cls, options: Mapping[str, Any], steps: int) -> str | None:
        """Return why a training of this many steps would never differ from the loss alone; None if it would."""
        return None
