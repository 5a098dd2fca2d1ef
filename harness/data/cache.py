"""A cache that processes share: files and small results, written under a temporary name and renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import UserError


class CacheError(UserError):
    """Raised if the cache folder cannot be written; the message names it and says what to do."""


def default_folder() -> Path:
    """Return the default folder: `$XDG_CACHE_HOME/metrix-bench`, or `~/.cache/metrix-bench`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metrix-bench"


def require_room(folder: Path, needed: int, what: str) -> str:
    """Return how many bytes `what` takes and how many are free in `folder`; raise CacheError if they do not fit."""
    free = shutil.disk_usage(folder).free
    takes = f"{what} takes about {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB left"
    if free < needed:
        raise CacheError(f"{takes}: free some space there, or choose another folder for the cache")
    return takes


@contextmanager
def building(path: Path, continued: bool = False) -> Iterator[Path]:
    """Lock `path` for this process and yield a scratch path that is renamed to `path` on success.

    Waits while another process builds the same file, so check `path` again inside: the other process may have built
    it. Nothing is renamed if the scratch file was not written or the block raises. With `continued`, the scratch file
    of an interrupted build is kept, and the next one continues it. The lock belongs to the kernel (flock), so a
    killed process leaves none behind.

    Raises CacheError if the folder cannot be written or the disk is full.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not continued:
                scratch.unlink(missing_ok=True)  # left by a killed process
            yield scratch
            if scratch.exists():
                flush(scratch)
                os.replace(scratch, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _cannot_write(path.parent, error) from error
        finally:
            if not continued:
                scratch.unlink(missing_ok=True)
    finally:
        os.close(lock)


def remembered(
    folder: Path, key: Any, compute: Callable[[], Any], is_valid: Callable[[Any], bool] | None = None
) -> Any:
    """Return the result of `compute`, cached in `folder` under `key` (both are JSON) if it `is_valid`.

    The key must contain everything that the result depends on, versions included. A cached result that is no longer
    valid is computed again. A cache that cannot be read or written only costs time.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / "remembered" / f"{digest}.json"
    with suppress(OSError, ValueError):
        cached = json.loads(path.read_bytes())
        if is_valid is None or is_valid(cached):
            return cached
    result = json.loads(json.dumps(compute()))
    if is_valid is None or is_valid(result):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            temporary.write_text(json.dumps(result), encoding="utf-8")
            temporary.replace(path)
    return result


def _cannot_write(folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"cannot write the cache in {folder}: {error.strerror}; free some space or grant permission there, "
        "or choose another folder for the cache"
    )


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk, since a rename may reach it before the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
