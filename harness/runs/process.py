"""This machine, its kernel and its processes, as scratch files and leases name them."""

import os
import socket
import zlib
from contextlib import suppress
from pathlib import Path


def this_host() -> str:
    """Return the name of this machine, at most 60 characters."""
    return socket.gethostname()[:60]


def this_boot() -> str:
    """Return an identifier of this boot of the kernel and of the process namespace (containers share a kernel)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with suppress(OSError):
        return f"{boot.read_text(encoding='utf-8').strip()} {os.readlink('/proc/self/ns/pid')}"
    return "unknown"


def namespace() -> str:
    """Return a short name of machine and process namespace: containers may share a host name and a folder."""
    return f"{this_host().replace('.', '_')}_{zlib.crc32(this_boot().encode()):08x}"


def alive(pid: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
