"""This machine, its kernel and its processes, as they stand in the names of scratch files and in leases."""

import os
import socket
import zlib
from contextlib import suppress
from pathlib import Path


def this_host() -> str:
    """The name of this machine, as it stands in the names of scratch files and in leases."""
    return socket.gethostname()[:60]


def this_boot() -> str:
    """This kernel since it started, and the set of process numbers seen here (containers share a kernel)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with suppress(OSError):
        return f"{boot.read_text(encoding='utf-8').strip()} {os.readlink('/proc/self/ns/pid')}"
    return "unknown"


def numbering() -> str:
    """This machine and the set of process numbers seen here, in short: containers may share a name and a folder."""
    return f"{this_host().replace('.', '_')}_{zlib.crc32(this_boot().encode()):08x}"


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
