"""Small disks in memory, which tests fill up."""

import subprocess
from contextlib import suppress
from pathlib import Path


def mount(folder: Path, size: int) -> str | None:
    """Mount a disk of `size` bytes at a new folder; return why that is impossible here, or None."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return f"mounting is not permitted here: {done.stderr.strip()}" if done.returncode else None


def unmount(folder: Path) -> None:
    """Unmount a disk even if it is in use."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk; return the file that occupies it."""
    filler = disk / "filler"
    for block in (2**20, 512):
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(block))
    return filler
