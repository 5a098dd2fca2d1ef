"""Losses of pytorch-metric-learning as arms of a grid: `pml:MarginLoss`, with its keyword arguments as options.

They run as baselines under the same conditions as our losses. Without label weights they have no Metrix form.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from baselines import Description
from harness import registry

PREFIX = "pml:"
SIZES = {"num_classes": "num_classes", "embedding_size": "dim", "descriptors_dim": "dim"}
RATE = 100.0  # learning rate of class vectors relative to lr, as for our losses; 1 for scalars such as β


def describe(name: str) -> Description:
    """Describe `pml:…`: the keyword arguments that a grid can set, with their defaults.

    Raises RegisterError with similar names for an unknown loss, and for a loss that needs objects as arguments.
    """
    loss = _find(name)
    parameters = _parameters(loss)
    objects = [key for key, default in parameters.items() if default is inspect.Parameter.empty and key not in SIZES]
    if objects:
        raise registry.RegisterError(
            f"{name} needs {' and '.join(objects)}, which have no default and cannot be set in a grid"
        )
    plain = bool | int | float | str | None
    return Description(
        name=name,
        title=loss.__name__,
        paper="pytorch-metric-learning",
        year=2020,
        kind="library",
        parameters={k: v for k, v in parameters.items() if k not in SIZES and isinstance(v, plain)},
        metrix=False,
        why_no_metrix="a loss of pytorch-metric-learning takes pairs from labels and has no label weights to mix",
        learnable=(),
        tuned_on=None,
        remark="",
        search_space={},
    )


def create(
    name: str, *, num_classes: int, dim: int, generator: torch.Generator | None = None, **options: Any
) -> "LibraryLoss":
    """Create the loss `pml:…`. Initial class vectors come from a forked generator that `generator` seeds."""
    loss = _find(name)
    sizes = {"num_classes": num_classes, "dim": dim}
    wanted = {key: sizes[size] for key, size in SIZES.items() if key in _parameters(loss)}
    seed = int(torch.randint(2**62, (), generator=generator))
    given = {key: value for key, value in options.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LibraryLoss(loss(**wanted, **given))


class LibraryLoss(nn.Module):
    """A loss of the library with the interface of ours, computed in float32 even under autocast."""

    mixed_rows = 0

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (scalar) of embeddings (n, d) with labels (n,)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels.to(embeddings.device, non_blocking=True))

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (scalar) of the model's embeddings of images (n, 3, h, w)."""
        return self(model(images), labels)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return its learnable tensors as optimiser groups: class vectors at 100 times lr, scalars at lr."""
        return [{"params": [p], "lr": lr * (RATE if p.ndim > 1 else 1.0)} for p in self.parameters()]


def _library():
    try:
        from pytorch_metric_learning import losses
    except ModuleNotFoundError as error:
        raise registry.RegisterError(
            f"{PREFIX}… losses need pytorch-metric-learning: pip install '.[pml]'"
        ) from error
    return losses


def _find(name: str) -> type[nn.Module]:
    library = _library()
    known = [key for key, value in vars(library).items() if inspect.isclass(value) and key.endswith("Loss")]
    if name.removeprefix(PREFIX) not in known:
        raise registry.RegisterError(registry.unknown("loss", name, [PREFIX + key for key in known]))
    return getattr(library, name.removeprefix(PREFIX))


def _parameters(loss: type) -> dict[str, Any]:
    """Return the keyword arguments with defaults, including those that base classes take through **kwargs."""
    parameters: dict[str, Any] = {}
    for owner in loss.__mro__:
        signature = (
            inspect.signature(owner.__init__) if "__init__" in vars(owner) and owner is not nn.Module else None
        )
        for key, parameter in signature.parameters.items() if signature else ():
            if key not in ("self", "mat_based_loss") and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            ):
                parameters.setdefault(key, parameter.default)
    return parameters
