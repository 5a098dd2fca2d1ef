"""Losses of pytorch-metric-learning as arms of a grid: `pml:MarginLoss`, with its keyword arguments as options.

They run as baselines under the same conditions as ours. They know no label weights, so they have no Metrix form.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from baselines import Description
from harness import registry

PREFIX = "pml:"
SIZES = {"num_classes": "num_classes", "embedding_size": "dim", "descriptors_dim": "dim"}
RATE = 100.0  # of class vectors, as for our losses that learn some; 1 for single numbers such as β


def describe(name: str) -> Description:
    """What is known of `pml:…`: its keyword arguments that a grid can write, with their defaults.

    Raises RegisterError with near names for an unknown loss, and for one that wants objects instead of values.
    """
    loss = _find(name)
    parameters = _parameters(loss)
    objects = [key for key, default in parameters.items() if default is inspect.Parameter.empty and key not in SIZES]
    if objects:
        raise registry.RegisterError(f"{name} needs {' and '.join(objects)}: values that no default stands for")
    plain = bool | int | float | str | None
    return Description(
        name=name,
        title=loss.__name__,
        paper="pytorch-metric-learning",
        year=2020,
        parameters={k: v for k, v in parameters.items() if k not in SIZES and isinstance(v, plain)},
        metrix=False,
        why_no_metrix="a loss of pytorch-metric-learning takes pairs from labels and has no label weights to mix",
        learnable=(),
        tuned_on=None,
        search_space={},
    )


def create(
    name: str, *, num_classes: int, dim: int, generator: torch.Generator | None = None, **options: Any
) -> "Foreign":
    """The loss `pml:…` as an objective; initial class vectors are drawn from a fork seeded by `generator`."""
    loss = _find(name)
    sizes = {"num_classes": num_classes, "dim": dim}
    wanted = {key: sizes[size] for key, size in SIZES.items() if key in _parameters(loss)}
    seed = int(torch.randint(2**62, (), generator=generator))
    given = {key: value for key, value in options.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Foreign(loss(**wanted, **given))


class Foreign(nn.Module):
    """A loss called as loss(embeddings, labels), in float32 whatever the autocast."""

    mixed_rows = 0

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss (scalar) of embeddings (n, d) with labels (n,)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels)

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss (scalar) of the model's embeddings of images (n, 3, h, w)."""
        return self(model(images), labels)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Its learnable tensors as optimiser groups: class vectors at 100 times lr, single numbers at lr."""
        return [{"params": [p], "lr": lr * (RATE if p.ndim > 1 else 1.0)} for p in self.parameters()]


def _library():
    try:
        from pytorch_metric_learning import losses
    except ModuleNotFoundError as error:
        raise registry.RegisterError(
            f"losses written {PREFIX}… come from pytorch-metric-learning: pip install '.[pml]'"
        ) from error
    return losses


def _find(name: str) -> type[nn.Module]:
    library = _library()
    known = [key for key, value in vars(library).items() if inspect.isclass(value) and key.endswith("Loss")]
    if name.removeprefix(PREFIX) not in known:
        raise registry.RegisterError(registry.unknown("loss", name, [PREFIX + key for key in known]))
    return getattr(library, name.removeprefix(PREFIX))


def _parameters(loss: type) -> dict[str, Any]:
    """Keyword arguments with defaults, those its base classes take through **kwargs included."""
    found: dict[str, Any] = {}
    for owner in loss.__mro__:
        signature = (
            inspect.signature(owner.__init__) if "__init__" in vars(owner) and owner is not nn.Module else None
        )
        for key, parameter in signature.parameters.items() if signature else ():
            if key not in ("self", "mat_based_loss") and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            ):
                found.setdefault(key, parameter.default)
    return found
