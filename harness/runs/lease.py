"""One driver for a run, also where no kernel sees both: a lease that whoever holds it keeps renewing.

The lease is the small file `driver.json` of the run: who holds it, and a beat that counts up every few seconds while
the holder lives. No clocks are compared, since machines' clocks differ: whoever finds a lease watches whether the
beat still changes. On the same machine a dead process is recognised at once.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from harness.runs.errors import RunError
from harness.runs.process import alive, this_boot, this_host
from harness.runs.storage import Bucket, Folder

NAME = "driver.json"
EVERY_S = 5.0
SILENT_BEATS = 3  # renewals that a holder may miss
MOMENT_S = 1.0  # in which of two that take a lease at once the last one's writing arrives


@dataclass(frozen=True)
class Holder:
    """Who holds a run: host, boot (of which kernel, and which process numbers it sees), process, and since when."""

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
        """Whether it was a process of this machine, and is gone."""
        return (self.host, self.boot) == (this_host(), this_boot()) and not alive(self.pid)


class Lease:
    """A run held by this driver; `lost` once another one has taken it over: then stop, and write nothing more."""

    def __init__(self, storage: Folder | Bucket, holder: Holder):
        self._storage, self.holder, self.lost = storage, holder, False
        self._ended = threading.Event()

    def renew(self, first_s: float) -> None:
        """Count the beat up until `end`, after `first_s` and then every `holder.every_s` seconds.

        A renewal that cannot be written now is left to the next one.
        """
        pause_s = first_s
        while not self._ended.wait(pause_s):
            pause_s = self.holder.every_s
            with suppress(OSError, RunError):
                found = self._storage.read(NAME)
                if found is not None and nonce(found) != self.holder.nonce:
                    self.lost = True
                    return
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                self._storage.write(NAME, content(self.holder))

    def end(self, thread: threading.Thread) -> None:
        self._ended.set()
        thread.join()
        with suppress(OSError, RunError):
            if nonce(self._storage.read(NAME)) == self.holder.nonce:
                self._storage.delete(NAME)


@contextmanager
def hold(
    storage: Folder | Bucket, since: str, alone_here: bool, host: str | None = None, every_s: float = EVERY_S
) -> Iterator[Lease]:
    """Hold a run, renewing the lease every `every_s` seconds; RunError names the holder where there is a live one.

    `alone_here`: no other process of this machine can hold this storage (its kernel says so). A holder elsewhere that
    is silent for SILENT_BEATS renewals is taken over. `host` stands for this machine's name.
    """
    boot = this_boot() if host is None else f"of {host}"
    mine = Holder(host or this_host(), boot, os.getpid(), secrets.token_hex(8), since, every_s=every_s)
    moment = min(MOMENT_S, every_s)
    found, succeeds = storage.read(NAME), False
    if found is not None:
        other = holder(found)
        same = other is not None and (other.host, other.boot) == (mine.host, mine.boot)
        succeeds = same and (alone_here or other.dead_here)
        if not succeeds:
            _refuse_alive(storage, found)
    storage.write(NAME, content(mine))
    # Others watch a lease for longer before they take it: one that was this machine's is not waited for here, and the
    # first renewal, a moment later, would notice all the same.
    if not alone_here or (found is not None and not succeeds):
        time.sleep(moment)
        if (now := storage.read(NAME)) is None or nonce(now) != mine.nonce:
            raise RunError(_in_use(storage, now))
    lease = Lease(storage, mine)
    thread = threading.Thread(target=lease.renew, args=(moment,), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.end(thread)


def _refuse_alive(storage: Folder | Bucket, found: bytes) -> None:
    """Watch a lease for as long as its holder may be silent; RunError where it changes."""
    other = holder(found)
    every_s = other.every_s if other else EVERY_S
    print(
        f"{storage.place} was held by {other or 'another process'}; waiting {SILENT_BEATS * every_s:.0f} s to see "
        "whether it still runs",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + SILENT_BEATS * every_s
    while time.monotonic() < until:
        time.sleep(min(every_s / 4, 1.0))
        now = storage.read(NAME)
        if now is None:
            return
        if now != found:
            raise RunError(_in_use(storage, now))


def _in_use(storage: Folder | Bucket, lease: bytes | None) -> str:
    who = (holder(lease) if lease else None) or "another process"
    return f"{storage.place} is in use by {who}; wait for it, or choose another folder with --out (OUT=… of make)"


def content(holder: Holder) -> bytes:
    """A lease as it is written."""
    return json.dumps(asdict(holder)).encode()


def holder(lease: bytes) -> Holder | None:
    """Who wrote a lease; None where it cannot be read, which does not make its beat stand still."""
    try:
        return Holder(**json.loads(lease))
    except (ValueError, TypeError):
        return None


def nonce(lease: bytes | None) -> str | None:
    """The nonce in a lease; None where there is none."""
    found = holder(lease) if lease else None
    return found.nonce if found else None
