"""The peak memory of a piece of work: of a GPU, or of this process where it runs on a processor."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

REFERENCES, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # written to `clear_refs`, it resets the peak of resident memory (Linux, proc(5))


def begin(device: torch.device) -> bool:
    """Reset the peak, and return whether `peak_gb` will be that of the work that follows.

    On a processor only Linux can reset it, and some containers forbid it. Memory that earlier work has freed and the
    allocator keeps counts as resident: it is given back to the system first, where the allocator can (glibc).
    """
    if device.type == "cuda":
        torch.cuda.init()  # before that, torch knows no GPU by its number
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
    """GB (10⁹ bytes) at the peak since `begin`: allocated on the GPU, or resident in this process with its libraries.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return _resident_gb()


def _resident_gb() -> float | None:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else int(found) * 1024 / 1e9
