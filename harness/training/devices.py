"""The devices of this machine: which of them a trial runs on, and what they are called."""

import re
from pathlib import Path

import torch

from harness.errors import UserError

DRIVER = Path("/proc/driver/nvidia/version")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


def driver_version(device: torch.device) -> str | None:
    """The version of the GPU's driver as its kernel module states it; None on a processor, "unknown" without one."""
    if device.type != "cuda":
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text(encoding="utf-8")) if DRIVER.exists() else None
    return found.group() if found else "unknown"


class DeviceError(UserError):
    """A device that is not there, or ranks that it cannot carry."""


def rank_devices(ranks: int, asked: str | None) -> list[torch.device]:
    """The device of each rank: cuda:0, cuda:1, … or the processor. Raises DeviceError where too few are there."""
    if ranks < 1:
        raise DeviceError(f"ranks = {ranks}; a trial has at least one")
    device = present(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    if ranks == 1 or device.type != "cuda":
        return [device] * ranks
    if device.index is not None:
        raise DeviceError(f"device {device} is one GPU; ranks = {ranks} take device cuda, which is cuda:0, cuda:1, …")
    if ranks > torch.cuda.device_count():
        raise DeviceError(f"ranks = {ranks}, and there are {torch.cuda.device_count()} GPUs")
    return [torch.device("cuda", rank) for rank in range(ranks)]


def present(name: str) -> torch.device:
    """The device of this name. DeviceError names those that this machine has where it is none of them."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name not in known:
        try:
            torch.zeros(1, device=name).item()  # a kind of device that torch knows need not be there
        except (RuntimeError, AssertionError, NotImplementedError):
            why = "" if gpus else " (torch sees no GPU)"
            raise DeviceError(f"no device {name!r} on this machine; there are: {', '.join(known)}{why}") from None
    return torch.device(name)
