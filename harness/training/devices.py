"""The devices of this machine: which of them a trial runs on, and their names."""

import re
from pathlib import Path

import torch

from harness.errors import UserError

DRIVER = Path("/proc/driver/nvidia/version")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


def driver_version(device: torch.device) -> str | None:
    """Return the version of the GPU driver from its kernel module; None on a processor, "unknown" if not stated."""
    if device.type != "cuda":
        return None
    version = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text(encoding="utf-8")) if DRIVER.exists() else None
    return version.group() if version else "unknown"


class DeviceError(UserError):
    """Raised for a device that does not exist, or for ranks that the devices cannot hold."""


def rank_devices(ranks: int, name: str | None) -> list[torch.device]:
    """Return the device of each rank: cuda:0, cuda:1, … or the processor. Raise DeviceError if there are too few."""
    if ranks < 1:
        raise DeviceError(f"ranks = {ranks}; a trial needs at least one")
    device = find_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if ranks == 1 or device.type != "cuda":
        return [device] * ranks
    if device.index is not None:
        raise DeviceError(f"device {device} is one GPU; ranks = {ranks} need device cuda, that is cuda:0, cuda:1, …")
    if ranks > torch.cuda.device_count():
        raise DeviceError(f"ranks = {ranks}, but this machine has {torch.cuda.device_count()} GPUs")
    return [torch.device("cuda", rank) for rank in range(ranks)]


def find_device(name: str) -> torch.device:
    """Return the device of this name. Raise DeviceError listing the devices of this machine if it does not exist."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name not in known:
        try:
            torch.zeros(1, device=name).item()  # torch may know a type of device that this machine lacks
        except (RuntimeError, AssertionError, NotImplementedError):
            why = "" if gpus else " (torch sees no GPU)"
            raise DeviceError(f"no device {name!r} on this machine; there are: {', '.join(known)}{why}") from None
    return torch.device(name)
