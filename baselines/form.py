"""The generic label-weighted loss: one function of (similarities, label weights), clean or mixed.

    ℓ(a) = τ( σ⁺( Σ y·ρ⁺(s(a,x)) ) + σ⁻( Σ (1−y)·ρ⁻(s(a,x)) ) ),   sums over the labelled set (x, y) of anchor a

Venkataramanan et al., "It Takes Two to Tango: Mixup for Deep Metric Learning", ICLR 2022 (arXiv 2106.04990). On clean
data the label y says "positive" (1) or "negative" (0) for this anchor; Metrix lets y lie in between. A loss is
therefore written once, in `formula`. Everything else here turns a batch into similarities and label weights.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from baselines.counts import Counted
from baselines.numerics import cosine, full_precision, unit
from baselines.weights import Listed, Weights, log_mask

Kind = Literal["pairs", "tuples", "ranks", "classes", "proxies"]
"""What a loss compares.

pairs      an anchor with positives and negatives, in a `formula`
tuples     an anchor with a positive and a negative together
ranks      the ranks of the positives among all examples
classes    an anchor with a vector of each class
proxies    a proxy, which is the anchor, with the examples
"""


@dataclass
class Batch:
    """A checked batch, as the losses see it.

    It holds unit embeddings (n, d), labels (n,) and similarities (anchors, candidates), and the unit proxies of a
    loss that learns proxies. The labels are in host memory, so that what follows from them alone, such as how many
    pairs there are, is known without a wait for the device. `sides` and `log_sides` are filled by the methods of the
    same names on first use.
    """

    embeddings: Tensor
    host_labels: Tensor
    similarities: Tensor
    proxies: Tensor | None = None
    sides: tuple[Tensor, Tensor] | None = None
    log_sides: tuple[Tensor, Tensor] | None = None

    @cached_property
    def labels(self) -> Tensor:
        """The labels (n,) on the device of the similarities."""
        return moved(self.host_labels, self.similarities.device)

    @property
    def largest_class(self) -> int:
        """The number of examples of the largest class."""
        return max(Counter(_integers(self.host_labels)).values())


class Loss(Counted):
    """A published loss: its `formula`, its anchors and candidates, and where it was published.

    A subclass takes its hyperparameters as arguments (plus num_classes, dim and generator if it learns
    proxies) and implements `formula(similarities, positive, negative) -> (a,)`, the loss of each anchor. An anchor
    whose loss is undefined (the logarithm of an empty sum) contributes 0, and the mean over anchors counts it. There
    is no second derivative: a gradient with `create_graph=True` raises a RuntimeError.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    tuned_on: ClassVar[str | None] = None  # where the defaults were tuned
    remark: ClassVar[str] = ""  # what a table with it must say, such as that it was published with larger batches
    search_space: ClassVar[dict[str, dict[str, Any]]] = {}
    kind: ClassVar[Kind] = "pairs"
    anchors: ClassVar[Literal["examples", "proxies"]] = "examples"
    candidates: ClassVar[Literal["examples", "proxies"]] = "examples"
    mixed: ClassVar[Literal["candidates", "anchors", None]] = "candidates"  # the role of mixed examples
    why_no_metrix: ClassVar[str] = ""  # the reason, where `mixed` is None
    refused_pairs: ClassVar[dict[str, str]] = {}  # pair types without a mixed form, with the reason
    exponential: ClassVar[bool] = False  # the formula uses its similarities in log_sum_exp only
    rates: ClassVar[dict[str, float]] = {}  # multipliers of the learning rate, by the name of the tensor
    proxies: nn.Parameter  # of a loss that learns proxies
    mixed_rows = 0  # a plain loss sends no mixed rows through the network

    def __init__(self):
        super().__init__()  # without this, a loss without hyperparameters would have the signature of nn.Module

    def formula(self, similarities: Tensor, positive: Weights, negative: Weights) -> Tensor:
        """Return the loss (a,) of each anchor, from its similarities (a, …) and the label weights y and 1 − y."""
        raise TypeError(f"{type(self).__name__} has no formula; write formula(similarities, positive, negative)")

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:
        """Return the mean loss (scalar) of embeddings (n, d), normalised inside, with integer labels (n,).

        With labels on the CPU the loss never waits for another device; it waits once for labels that are there.
        `indices_tuple` exists for training loops that pass one; it must be None.
        """
        refuse_indices(indices_tuple)
        with full_precision(embeddings.device):
            return self.clean(self.batch(embeddings, labels))

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (scalar) to minimise, of the model's embeddings of images (n, 3, h, w)."""
        return self(model(images), labels)

    def batch(self, embeddings: Tensor, labels: Tensor) -> Batch:
        """Check a batch and compute its similarities. Raise a ValueError or TypeError that says what is wrong."""
        check_shapes(embeddings, labels)
        (z, lengths), labels = unit(embeddings), labels.cpu().long()
        if not self.learns_classes:
            check_values(lengths, labels, self.num_classes)
            return Batch(z, labels, cosine(z, z))
        if embeddings.shape[1] != self.proxies.shape[-1]:
            raise ValueError(
                f"embeddings have {embeddings.shape[1]} dimensions, but the loss was created with "
                f"dim={self.proxies.shape[-1]}"
            )
        check_values(lengths, labels, self.num_classes)
        proxies = unit(self.vectors().to(z.dtype))[0]
        sides = (proxies, z) if self.anchors == "proxies" else (z, proxies)
        return Batch(z, labels, cosine(*sides), proxies)

    def vectors(self) -> Tensor:
        """Return the proxies as rows, in the order of the columns (or rows) of the similarities."""
        return self.proxies

    @property
    def learns_classes(self) -> bool:
        """Whether the loss has learnable vectors of the classes (proxies, class weights, centres)."""
        return "proxies" in (self.anchors, self.candidates)

    @property
    def num_classes(self) -> int | None:
        """The number of classes the loss has parameters for: labels must be smaller. None if any label is valid."""
        return len(self.proxies) if self.learns_classes else None

    def classes_in(self, batch: Batch) -> int:
        """Return the number of classes that a batch compares with: those of the loss, and any that were added."""
        vectors = batch.similarities.shape[0 if self.anchors == "proxies" else 1]
        return vectors // self.proxies.shape[1:-1].numel()  # a class may have several centres

    def clean(self, batch: Batch) -> Tensor:
        """Return the loss (scalar) of a checked batch."""
        return self.formula(batch.similarities, *self.labelled(batch)).mean()

    def regulariser(self, batch: Batch) -> Tensor | float:
        """Return the part of `clean` that no example enters, only the class vectors."""
        return 0.0

    def sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the masks of the positives and the negatives of each anchor (bool); an anchor is never its own."""
        if batch.sides is None:
            batch.sides = self._sides(batch, batch.labels)
        return batch.sides

    def host_sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the same masks in host memory, for shapes that follow from them."""
        on_host = batch.similarities.device.type == "cpu"
        return self.sides(batch) if on_host else self._sides(batch, batch.host_labels)

    def _sides(self, batch: Batch, labels: Tensor) -> tuple[Tensor, Tensor]:
        anchors = candidates = labels
        if self.learns_classes:
            classes = torch.arange(self.classes_in(batch), device=labels.device)
            anchors, candidates = (classes, candidates) if self.anchors == "proxies" else (anchors, classes)
        same = anchors[:, None] == candidates
        other = ~same
        return (same if self.learns_classes else same.fill_diagonal_(False)), other

    def log_sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logarithms of `sides`: 0 for positives (negatives) of an anchor, −∞ for the others."""
        if batch.log_sides is None:
            positive, negative = self.sides(batch)
            dtype = batch.similarities.dtype
            batch.log_sides = log_mask(positive, dtype), log_mask(negative, dtype)
        return batch.log_sides

    def labelled(self, batch: Batch) -> tuple[Weights, Weights]:
        """Return the label weights of the clean batch: 1 for each positive, 1 for each negative."""
        if self.candidates == "proxies":
            ones = batch.similarities.new_ones(len(batch.labels), 1)
            own_class = Listed(batch.labels[:, None], ones, torch.Size((len(ones), self.classes_in(batch))))
            return own_class, own_class.rest()
        positive, negative = self.log_sides(batch)
        return Weights(positive, 1.0, positive.shape), Weights(negative, 1.0, negative.shape)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the learnable tensors as optimiser groups, each with lr times its own multiplier."""
        return [
            {"params": [tensor], "lr": lr * self.rates.get(name, 1.0)} for name, tensor in self.named_parameters()
        ]


def proxies(num_classes: int, dim: int, generator: torch.Generator | None, per_class: int = 0) -> nn.Parameter:
    """Draw one learnable vector for each class (num_classes, dim), or `per_class` of them, normally distributed.

    The variance is 2 / fan-out. The numbers come from `generator`, or else from a fork of torch's own, so that no
    other random number changes.
    """
    shape = (num_classes, per_class, dim) if per_class else (num_classes, dim)
    deviation = math.sqrt(2.0 / (num_classes * max(1, per_class)))
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
        return nn.Parameter(torch.empty(shape).normal_(0.0, deviation, generator=generator))


def log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above − below (a,), two logarithms of sums, with 0 and no gradient where one of the sums is empty."""
    return (above - below).masked_fill((above == -math.inf) | (below == -math.inf), 0.0)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of host memory on a device. The processor goes on while it is copied."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy of other memory may wait
    return tensor.to(device, non_blocking=True)


def within(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, above: float | None = None
) -> float:
    """Return `value` if it is a finite number in [low, high] and greater than `above`; else raise a ValueError."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and low <= number <= high and (above is None or number > above):
        return number
    floor = f"(−∞, {high}]" if low == -math.inf else f"[{low}, {high}]"
    allowed = f"a number in ({above}, {high}]" if above is not None else f"a number in {floor}"
    raise ValueError(f"{name} = {value!r} is out of range: it must be {allowed}".replace(f"{math.inf}]", "∞)"))


def whole(name: str, value: object, low: int = 1) -> int:
    """Return `value` if it is a whole number of at least `low`; else raise a ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise ValueError(f"{name} = {value!r} is out of range: it must be a whole number of at least {low}")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of the choices; otherwise raise a ValueError that lists them."""
    if value in choices:
        return value
    raise ValueError(f"{name} = {value!r} is unknown; it must be one of {', '.join(map(repr, choices))}")


def refuse_indices(indices_tuple: Any) -> None:
    """Raise if a miner chose pairs or triplets: these losses compute their label weights from the labels alone."""
    if indices_tuple is not None:
        raise ValueError("indices_tuple is given, but these losses take their pairs from the labels; pass None")


class NotFinite(ValueError):
    """Raised for embeddings with NaN or infinity; a training loop reports it as divergence."""


def check_shapes(embeddings: object, labels: object) -> None:
    """Raise unless embeddings are a floating (n, d) tensor and labels an integer (n,) tensor, there or on the CPU."""
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or not embeddings.is_floating_point():
        what = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        kind = f" of {embeddings.dtype}" if isinstance(embeddings, Tensor) else ""
        raise TypeError(f"embeddings must be a floating-point tensor (n, d), not {what}{kind}")
    check_labels(labels, len(embeddings), embeddings.device)


def check_labels(labels: object, count: int, device: torch.device) -> None:
    """Raise unless labels are an integer tensor (count,) on the CPU or on the device, count above 0."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor of integers (n,), not {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, not {labels.dtype}; use labels.long()")
    if labels.shape != (count,):
        raise ValueError(f"labels must have one entry for each of the {count} embeddings, not {tuple(labels.shape)}")
    if count == 0:
        raise ValueError("the batch is empty")
    if labels.device not in (device, torch.device("cpu")):
        raise ValueError(f"labels are on {labels.device}, embeddings on {device}; move one of them")


def check_values(lengths: Tensor, labels: Tensor, num_classes: int | None) -> None:
    """Raise if a label (in host memory) names no class or, on the CPU, an embedding is not finite.

    On another device, a check of embeddings would wait for it. There such an embedding makes the loss NaN.
    """
    if lengths.device.type == "cpu" and not lengths.detach().sum().isfinite():
        rows = _integers((~lengths.isfinite()).flatten().nonzero().flatten())
        raise NotFinite(
            f"{len(rows)} of {len(lengths)} embeddings are not finite, or too long for {lengths.dtype}: "
            f"rows {rows[:10]}"
        )
    if num_classes is None:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"label {wrong} names no class: num_classes={num_classes}, so labels are 0 to {num_classes - 1}"
        )


def _integers(tensor: Tensor) -> list[int]:
    return cast(list[int], tensor.tolist())  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
