"""Losses compute in full precision, however their caller allowed torch to round."""

from typing import Any

import pytest
import torch

import baselines
from baselines.numerics import full_precision

BACKENDS: Any = torch.backends
OF_DEVICES = {
    "cpu": (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv),
    "cuda": (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv),
}
SWITCHES = (*OF_DEVICES["cpu"], *OF_DEVICES["cuda"])


@pytest.fixture(autouse=True)
def _switches_as_they_were():
    before = [switch.fp32_precision for switch in SWITCHES]
    yield
    torch.set_float32_matmul_precision("highest")
    for switch, precision in zip(SWITCHES, before, strict=True):
        switch.fp32_precision = precision


def newer():
    for switches, precision in zip(OF_DEVICES.values(), ("bf16", "tf32"), strict=True):
        for switch in switches:
            switch.fp32_precision = precision


def older():
    torch.set_float32_matmul_precision("medium")


@pytest.mark.parametrize("allow", [newer, older])
@pytest.mark.parametrize("device", OF_DEVICES)
def test_rounding_is_off_inside_and_as_it_was_after(device, allow):
    allow()
    allowed_of = {switch: switch.fp32_precision for switch in SWITCHES}
    allowed = list(allowed_of.values())
    assert {"bf16", "tf32"} <= set(allowed)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(torch.device(device)):
            products, convolutions = OF_DEVICES[device]
            assert (products.fp32_precision, convolutions.fp32_precision) == ("ieee", allowed_of[convolutions])
            assert torch.is_autocast_enabled("cpu") == (device != "cpu")
        with full_precision(torch.device(device), convolutions=True):
            assert {switch.fp32_precision for switch in OF_DEVICES[device]} == {"ieee"}
        assert torch.is_autocast_enabled("cpu")
    assert [switch.fp32_precision for switch in SWITCHES] == allowed


@pytest.mark.parametrize("allow", [newer, older])
@pytest.mark.parametrize("name", baselines.names())
def test_losses_are_the_same_where_rounding_is_allowed(name, allow):
    def value_and_gradient():
        generator = torch.Generator().manual_seed(0)
        loss = baselines.create(name, num_classes=4, dim=64, generator=generator)
        embeddings = torch.randn(16, 64, generator=generator).requires_grad_()
        value = loss(embeddings, torch.arange(16) % 4)
        value.backward()
        assert embeddings.grad is not None
        return value.detach(), embeddings.grad

    exact = value_and_gradient()
    allow()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(exact, value_and_gradient(), strict=True))


def test_every_product_of_a_backward_pass_is_in_full_precision(monkeypatch):
    """The backward pass runs after the loss has returned, when its caller's switches hold again."""
    seen = []
    matmul = torch.Tensor.__matmul__

    def watched(a, b):
        seen.append(BACKENDS.mkldnn.matmul.fp32_precision)
        return matmul(a, b)

    for name in baselines.names():
        loss = baselines.create(name, num_classes=4, dim=8, generator=torch.Generator().manual_seed(0))
        value = loss(torch.randn(16, 8).requires_grad_(), torch.arange(16) % 4)
        newer()
        monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
        value.backward()
        monkeypatch.undo()
        nodes, names = [value.grad_fn], set()
        while nodes:
            node = nodes.pop()
            names.add(node.name())
            nodes += [parent for parent, _ in node.next_functions if parent is not None]
        assert not {"MmBackward0", "BmmBackward0", "AddmmBackward0"} & names, (
            name
        )  # torch's own, which no switch reaches
    assert set(seen) == {"ieee"}
