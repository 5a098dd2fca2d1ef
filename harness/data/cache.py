"""What several processes build once and share, files and small results: written aside, renamed into place."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import UserError


class CacheError(UserError):
    """The cache folder cannot be written; the message names the folder and says what to do."""


def default_folder() -> Path:
    """The folder used when none is named: `$XDG_CACHE_HOME/metrix-bench`, or `~/.cache/metrix-bench`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metrix-bench"


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Hold `path` for this process alone and give a scratch path that becomes `path` on success.

    Waits while another process builds the same file, so look at `path` again inside: the other one may
    have finished it. Nothing is renamed when the scratch file was never written, or when the block raises.
    The lock is the kernel's (flock), so a killed process leaves none behind.

    Raises CacheError when the folder cannot be written or the disk is full.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _refusal(path.parent, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            scratch.unlink(missing_ok=True)  # of a process that was killed
            yield scratch
            if scratch.exists():
                flush(scratch)
                os.replace(scratch, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _refusal(path.parent, error) from error
        finally:
            scratch.unlink(missing_ok=True)
    finally:
        os.close(lock)


_recalled: dict[Path, Any] = {}  # by this process


def remembered(folder: Path, key: Any, find: Callable[[], Any], worth: Callable[[Any], bool] | None = None) -> Any:
    """What `find` returns, kept in `folder` by `key` (both are JSON), as far as it is `worth` keeping.

    The key holds all that the result depends on, versions included. What was kept is recalled while it still is
    `worth` it, and found again otherwise. A cache that cannot be written or read costs time alone.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / "remembered" / f"{digest}.json"
    with suppress(OSError, ValueError):
        if path not in _recalled:
            _recalled[path] = json.loads(path.read_bytes())
        if worth is None or worth(_recalled[path]):
            return _recalled[path]
    found = json.loads(json.dumps(find()))
    if worth is None or worth(found):
        _recalled[path] = found
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            aside.write_text(json.dumps(found), encoding="utf-8")
            aside.replace(path)
    return found


def _refusal(folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"cannot write the cache in {folder}: {error.strerror}; make room or give permission there, "
        "or name another folder for the cache"
    )


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk: a rename may reach it before the data does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
