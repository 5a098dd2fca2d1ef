"""One driver for a run, even across machines: a lease that its holder keeps renewing.

The lease is the file `driver.json` of the run: its holder, and a beat that counts up every few seconds while the
holder is alive. No clocks are compared, since machines' clocks differ: a driver that finds a lease watches whether
its beat still changes. On one machine the kernel's lock decides at once.
"""

import errno
import fcntl
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TextIO

from harness.runs.bucket import Bucket
from harness.runs.errors import RunError
from harness.runs.folder import Folder
from harness.runs.process import alive, this_boot, this_host

NAME = "driver.json"
EVERY_S = 5.0
SILENT_BEATS = 3  # renewals that a holder may miss
SETTLE_S = 1.0  # after which, of two drivers that take a lease at once, both see the last write


@dataclass(frozen=True)
class Holder:
    """The holder of a run. `boot` identifies its kernel and process namespace."""

    host: str
    boot: str
    pid: int
    nonce: str
    since: str
    beat: int = 0
    every_s: float = EVERY_S

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def dead_here(self) -> bool:
        """Whether it was a process of this machine and has ended."""
        return (self.host, self.boot) == (this_host(), this_boot()) and not alive(self.pid)


class Lease:
    """A run held by this driver. Once another driver has taken it over (`lost`), stop and write nothing more."""

    def __init__(self, storage: Folder | Bucket, holder: Holder):
        self._storage, self.holder, self.lost = storage, holder, False
        self._ended = threading.Event()

    def renew(self, first_s: float) -> None:
        """Count the beat up until `end`, after `first_s` and then every `holder.every_s` seconds.

        A renewal that cannot be written is skipped.
        """
        pause_s = first_s
        while not self._ended.wait(pause_s):
            pause_s = self.holder.every_s
            with suppress(OSError, RunError):
                stored = self._storage.read(NAME)
                if stored is not None and nonce(stored) != self.holder.nonce:
                    self.lost = True
                    return
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                self._storage.write(NAME, content(self.holder))

    def end(self, thread: threading.Thread) -> None:
        """End the renewals in `thread` and delete the lease, unless it is another driver's by now."""
        self._ended.set()
        thread.join()
        with suppress(OSError, RunError):
            if nonce(self._storage.read(NAME)) == self.holder.nonce:
                self._storage.delete(NAME)


@contextmanager
def hold(
    storage: Folder | Bucket, since: str, alone_here: bool, host: str | None = None, every_s: float = EVERY_S
) -> Iterator[Lease]:
    """Hold a run, renewing the lease every `every_s` seconds. Raises RunError, naming the holder, if one is alive.

    `alone_here`: the kernel guarantees that no other process of this machine holds this storage. A holder elsewhere
    that is silent for SILENT_BEATS renewals is replaced. `host` stands in for this machine's name.
    """
    boot = this_boot() if host is None else f"of {host}"
    own = Holder(host or this_host(), boot, os.getpid(), secrets.token_hex(8), since, every_s=every_s)
    settle_s = min(SETTLE_S, every_s)
    stored, succeeds = storage.read(NAME), False
    if stored is not None:
        other = holder(stored)
        if other is not None and (other.host, other.boot) == (own.host, own.boot):
            succeeds = alone_here or other.dead_here
        if not succeeds:
            _require_silence(storage, stored)
    storage.write(NAME, content(own))
    # Other drivers watch a lease for longer before they take it. So one that was this machine's needs no wait here;
    # the first renewal, a moment later, would notice another driver all the same.
    if not alone_here or (stored is not None and not succeeds):
        time.sleep(settle_s)
        if (now := storage.read(NAME)) is None or nonce(now) != own.nonce:
            raise RunError(in_use(storage.place, holder(now) if now else None))
    lease = Lease(storage, own)
    thread = threading.Thread(target=lease.renew, args=(settle_s,), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.end(thread)


def _require_silence(storage: Folder | Bucket, stored: bytes) -> None:
    """Watch a lease for as long as its holder may be silent. Raises RunError if it is renewed."""
    other = holder(stored)
    every_s = other.every_s if other else EVERY_S
    print(
        f"{storage.place} was held by {other or 'another process'}; waiting {SILENT_BEATS * every_s:.0f} s to see "
        "whether it is still running",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + SILENT_BEATS * every_s
    while time.monotonic() < until:
        time.sleep(min(every_s / 4, 1.0))
        now = storage.read(NAME)
        if now is None:
            return
        if now != stored:
            raise RunError(in_use(storage.place, holder(now)))


def lock_file(file: TextIO, place: str) -> bool:
    """Take the kernel's lock on a file; return False on storage without locks.

    Raises RunError if another process has it; the file names that process.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        file.seek(0)
        raise RunError(in_use(place, file.read().strip())) from None
    return True


def in_use(place: str, driver: Holder | str | None) -> str:
    """Return the sentence that a run is in use by a driver, as far as that is known."""
    who = driver or "another process"
    return f"{place} is in use by {who}; wait for it, or choose another folder with --out (OUT=… of make)"


def content(holder: Holder) -> bytes:
    """Return a lease as it is stored."""
    return json.dumps(asdict(holder)).encode()


def holder(lease: bytes) -> Holder | None:
    """Return the holder of a stored lease; None if it cannot be read, in which case only its change shows a beat."""
    try:
        return Holder(**json.loads(lease))
    except (ValueError, TypeError):
        return None


def nonce(lease: bytes | None) -> str | None:
    """Return the nonce of a stored lease; None if there is none or it cannot be read."""
    read = holder(lease) if lease else None
    return read.nonce if read else None
