"""The most memory that a piece of work took: of a GPU, or of this process where it runs on a processor."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

REFERENCES, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # what `clear_refs` takes to begin the peak of resident memory anew (Linux, proc(5))


def begin(device: torch.device) -> bool:
    """Begin to count anew; whether `peak_gb` will tell of the work that follows.

    On a processor only Linux can do that, and not every container is allowed to. What earlier work has freed and the
    allocator keeps is given back to the system first, where the allocator can do so (glibc): it counts as resident.
    """
    if device.type == "cuda":
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
