"""The devices of this machine: those that exist, and those that do not."""

import pytest
import torch

from harness.training import devices
from harness.training.devices import DeviceError, driver_version, rank_devices

CPU = torch.device("cpu")


def test_missing_devices_are_rejected(monkeypatch):
    assert rank_devices(2, "cpu") == [CPU, CPU]
    with pytest.raises(DeviceError, match="ranks = 0; a trial needs at least one"):
        rank_devices(0, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:7", "gpu", "", "meta"):
        with pytest.raises(DeviceError) as caught:
            devices.find_device(name)
        assert str(caught.value) == f"no device {name!r} on this machine; there are: cpu (torch sees no GPU)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="device cuda:0 is one GPU; ranks = 2 need device cuda"):
        rank_devices(2, "cuda:0")
    with pytest.raises(DeviceError, match="ranks = 2, but this machine has 1 GPUs"):
        rank_devices(2, "cuda")


def test_the_driver_of_a_gpu(tmp_path, monkeypatch):
    module = tmp_path / "version"
    monkeypatch.setattr("harness.training.devices.DRIVER", module)
    assert driver_version(torch.device("cuda")) == "unknown"
    module.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\nGCC 12\n")
    assert driver_version(torch.device("cuda")) == "580.95.05"
