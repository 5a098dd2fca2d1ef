"""A stand-in for an accelerator on the CPU, which counts what would make the processor wait for it.

Tensors of the stand-in call themselves "meta" and compute their numbers on the CPU. As on a GPU, an operation refuses
to mix them with tensors in host memory, other than single numbers. So what runs here without a wait needs no value of
the device.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
ROOT = Path(__file__).parents[1]
OURS = tuple(f"{ROOT / part}/" for part in ("baselines", "metrix", "harness"))

_aten = torch.ops.aten
WAITING = {  # operations whose results, or their shapes, are values of the device
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.bincount,
    _aten.repeat_interleave,
    _aten.equal,
    _aten.multinomial,
}
COPIES = {_aten._to_copy, _aten.copy_}
INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class OnDevice(Tensor):
    """A tensor of the stand-in, and its numbers on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue] (untyped in torch)
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers = numbers
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with _Device() as device:
            return device.__torch_dispatch__(function, types, args, kwargs)


class _Device(TorchDispatchMode):
    """Computes the operations of the stand-in and counts, by line of ours, those that would wait for it."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        packet = function.overloadpacket
        flat, _ = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, OnDevice)]
        here = [x for x in tensors if not isinstance(x, OnDevice) and x.ndim]
        target = kwargs.get("device")
        towards = there and (target is None or torch.device(target) == DEVICE)
        if packet in COPIES:
            to_device = bool(towards) if packet is not _aten.copy_ else isinstance(args[0], OnDevice)
            to_device = to_device or (target is not None and torch.device(target) == DEVICE)
            non_blocking = kwargs.get("non_blocking") or (packet is _aten.copy_ and len(args) > 2 and args[2])
            source = args[1] if packet is _aten.copy_ else args[0]
            if to_device != isinstance(source, OnDevice) and (not to_device or (not non_blocking and source.ndim)):
                self.count(function)
        elif there:
            if here and packet not in INDEXING:
                raise RuntimeError(f"{function} mixes tensors of the device with others, of {here[0].shape}")
            masks = packet in INDEXING and any(
                x is not None and (x.dtype in (torch.bool, torch.uint8) or not isinstance(x, OnDevice))
                for x in args[1]
            )
            if packet in WAITING or masks:
                self.count(function)
        on_device = bool(towards) if packet is not _aten.copy_ else isinstance(args[0], OnDevice)
        if target is not None:
            on_device = torch.device(target) == DEVICE
            kwargs["device"] = torch.device("cpu")
        plain = tree_map(lambda x: x.numbers if isinstance(x, OnDevice) else x, (args, kwargs))
        result = function(*plain[0], **plain[1])
        if not on_device or packet is _aten._local_scalar_dense:
            return result
        if torch.Tag.inplace_view in function.tags:
            with no_dispatch():
                function(*args, **kwargs)  # for its shape
        known = {id(x.numbers): x for x in there}
        leaves, spec = tree_flatten(result)
        return tree_unflatten([known.get(id(x), OnDevice(x)) if isinstance(x, Tensor) else x for x in leaves], spec)

    def count(self, function: Any) -> None:
        """Count a wait at the innermost line of ours; in the backward pass there may be none."""
        for frame in reversed(traceback.extract_stack()):
            if frame.filename.startswith(OURS):
                self.waits[f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {function}"] += 1
                return
        self.waits[str(function)] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Run the operations of the stand-in inside, and count what would wait for it."""
    autocast = torch.autocast

    def without_the_stand_in(kind: str, *arguments: Any, **options: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else autocast(kind, *arguments, **options)

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Generator:
            made: Any = super().__new__  # its type lacks the device
            return made(cls, "cpu" if torch.device(device) == DEVICE else device)

    with pytest.MonkeyPatch.context() as patch, _Device() as device:
        patch.setattr(torch, "autocast", without_the_stand_in)  # it knows neither autocast nor random numbers
        patch.setattr(torch, "Generator", Generator)
        yield device.waits
