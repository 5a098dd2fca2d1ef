"""Measure the peak memory of a piece of work: of the GPU, or of this process on a processor."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

REFERENCES, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # written to `clear_refs`, it resets the peak of resident memory (Linux, proc(5))


def begin(device: torch.device) -> bool:
    """Reset the peak, and return whether `peak_gb` will be the peak of the work that follows.

    On a processor only Linux can reset it, and some containers forbid it. Memory that was freed but is kept by the
    allocator counts as resident, so it is returned to the system first if the allocator supports that (glibc).
    """
    if device.type == "cuda":
        torch.cuda.init()  # before this, torch does not know GPUs by number
        torch.cuda.reset_peak_memory_stats(device)
        return True
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        REFERENCES.write_text(RESET_PEAK, encoding="ascii")
        return _resident_gb() is not None
    except OSError:
        return False


def peak_gb(device: torch.device) -> float | None:
    """Return the peak since `begin` in GB (10⁹ bytes): allocated on the GPU, or resident in this process.

    None if the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return _resident_gb()


def _resident_gb() -> float | None:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024 / 1e9
