"""Where a run lies, a folder or a bucket, and writes there that wait for room or for the storage to come back.

A run is always read and written as files of a folder. Where that folder is the run itself (`Folder`: a disk, a share
that machines mount), nothing more is to be done. A run in a bucket (`Bucket`) has a working copy on each machine:
what is read is pulled into it first, what was written is pushed from it, and what lies in the copy alone does not
count. This file is the only one that knows pyarrow.

Computing takes hours, a full disk minutes to clear: no write gives up at once (`patiently`). A share that is not
mounted looks like an empty folder, so a run folder carries an identity in the file `run.id`; whoever knows it waits
until the folder is that one again, and never makes it anew.
"""

import errno
import hashlib
import os
import re
import secrets
import socket
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from harness.data.cache import default_folder, flush
from harness.errors import UserError

T = TypeVar("T")

waiting: list[Callable[[], None]] = []  # called at each pause of a write that waits, by those who time this process

MARKER = "run.id"
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
PATIENCE_S = 600.0
LONGEST_PAUSE_S = 5.0
THREADS = 32  # small objects cost a round trip each, not bandwidth
SCRATCH_AGE_S = 3600.0

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
AWAY = {errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
AWAY |= {errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
AWAY_IN_WORDS = re.compile(  # pyarrow's errors of a bucket have no number
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|HTTP status 5\d\d"
)
NUMBER_IN_WORDS = re.compile(r"(?:\(os error |Os \{ code: )(\d+)")  # safetensors', of several versions


class RunError(UserError):
    """A run folder that cannot be used, with the reason and the way out in its message."""


class StorageError(RunError):
    """Storage that had no room or stayed away for longer than patience lasts; what it holds is whole."""


class Vanished(OSError):
    """A run folder that is not there, or is another one than it was."""


def patiently(attempt: Callable[[], T], place: Path | str, patience_s: float | None = None) -> T:
    """What `attempt` returns, tried again while the storage of `place` is full or away.

    It says once on stderr what it waits for. The pauses grow to LONGEST_PAUSE_S and in all reach `patience_s`
    (default: METRIX_BENCH_PATIENCE_S, or PATIENCE_S); then StorageError names the place. Other errors are raised at
    once. Before each attempt below a folder whose identity is known, the folder must be that one.
    """
    patience = longest_wait_s() if patience_s is None else patience_s
    began, pause, said = time.monotonic(), 0.1, False
    while True:
        try:
            _require_here(place)
            return attempt()
        except Exception as error:
            if (missing := _waited_for(error, place)) is None:
                raise
            left = began + patience - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"waited {patience:.0f} s for {missing}: {error}. Nothing that was computed is lost: what is "
                    "there is whole, and the same command continues from it"
                ) from error
            if not said:
                print(f"waiting for {missing} ({error})", file=sys.stderr, flush=True)
                said = True
            for tell in waiting:
                tell()
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)


def longest_wait_s() -> float:
    """For how long writes wait, unless they are told otherwise."""
    return float(os.environ.get("METRIX_BENCH_PATIENCE_S", PATIENCE_S))


def _waited_for(error: Exception, place: Path | str) -> str | None:
    """What would have to happen for another attempt to succeed; None for an error that waiting does not fix."""
    if isinstance(error, Vanished):
        return f"{_root(place)} to come back"
    number, words = getattr(error, "errno", None), str(error)
    if number is None and (found := NUMBER_IN_WORDS.search(words)):
        number = int(found.group(1))
    if number in NO_ROOM:
        return f"room on {place}"
    if number in AWAY or (isinstance(error, OSError) and AWAY_IN_WORDS.search(words)):
        return f"{place} to come back"
    if number == errno.ENOENT:  # taken away between the look and the write
        try:
            _require_here(place)
        except OSError:
            return f"{_root(place)} to come back"
    return None


_identities: dict[Path, str] = {}  # of the run folders that this process works in


def recognise(folder: Path, identity: str) -> None:
    """From now on, write below `folder` only while it is the run folder of this identity."""
    _identities[folder.absolute()] = identity


def _root(place: Path | str) -> Path | None:
    """The run folder around a path, where its identity is known."""
    if isinstance(place, str) or not _identities:
        return None
    path = place.absolute()
    return next((folder for folder in (path, *path.parents) if folder in _identities), None)


def _require_here(place: Path | str) -> None:
    if (root := _root(place)) is None:
        return
    try:
        found = (root / MARKER).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise Vanished(f"{root / MARKER} is not there") from None
    if found != _identities[root]:
        raise Vanished(f"{root} is another folder than the one that this run began in")


def make(folder: Path) -> None:
    """Make a folder and those above it, but no run folder anew: below a mount point that would be the wrong disk."""
    root = _root(folder)
    if root is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    steps = folder.absolute().relative_to(root).parts
    for depth in range(len(steps)):
        root.joinpath(*steps[: depth + 1]).mkdir(exist_ok=True)


def put(path: Path, write: Callable[[Path], object], patience_s: float | None = None) -> None:
    """Have `write` fill a scratch file, flush it to the disk and rename it to `path`, waiting where it must.

    Readers see all of it or nothing, and until then what was there before. StorageError after `patience_s`.
    """

    def attempt() -> None:
        make(path.parent)
        aside = scratch(path)
        try:
            write(aside)
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    patiently(attempt, path, patience_s)


_numbers = count()
SCRATCH = re.compile(r"\..*\.(?P<host>[^/]+)-(?P<pid>\d+)-\d+\.part")


def scratch(path: Path) -> Path:
    """A hidden name beside `path` that no other writer has, on this machine or another. Names may be long: cut."""
    return path.with_name(f".{path.name[:80]}.{_numbering()}-{os.getpid()}-{next(_numbers)}.part")


def this_host() -> str:
    """The name of this machine, as it stands in the names of scratch files and in leases."""
    return socket.gethostname()[:60]


def this_boot() -> str:
    """This kernel since it started, and the set of process numbers seen here (containers share a kernel)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with suppress(OSError):
        return f"{boot.read_text(encoding='utf-8').strip()} {os.readlink('/proc/self/ns/pid')}"
    return "unknown"


def _numbering() -> str:
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


def sweep(folder: Path, ended: bool = False, older_than_s: float = SCRATCH_AGE_S) -> int:
    """Remove what dead writers left below `folder`; how many files that were.

    Of writers whose process numbers are seen here, those that are gone; of others, all where the run has `ended`,
    else those not touched for `older_than_s` by the storage's own clock (machines' clocks differ).
    """
    left = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names if SCRATCH.fullmatch(name)]
    now = _clock(folder) if left else 0.0
    removed = 0
    for path in left:
        writer = SCRATCH.fullmatch(path.name)
        try:
            if writer["host"] == _numbering():
                dead = not alive(int(writer["pid"]))
            else:
                dead = ended or now - path.stat().st_mtime > older_than_s
            if dead:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # its writer was alive after all, and has finished
            continue
    return removed


def _clock(folder: Path) -> float:
    """The time as the storage stamps it."""
    probe = scratch(folder / "probe")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def named(place: str | Path) -> str | Path:
    """A place as it was named: a Path, or the text of a bucket's URL, whose slashes a Path would eat.

    Raises RunError for a URL with credentials in it, which this message does not repeat, and for other schemes.
    """
    text = str(place)
    scheme, url, rest = text.partition("://")
    if isinstance(place, Path) or not url:
        return Path(place)
    if scheme == "file":
        return Path(rest)
    owner = rest.partition("?")[0].rpartition("@")[0]
    if (owner and owner != "anonymous") or ":" in rest.partition("/")[0].partition("?")[0]:
        after = rest.rpartition("@")[2].partition("?")[0] if owner else "…"
        raise RunError(
            f"{scheme}://…@{after} has credentials in it, which lists of processes and logs would show: name "
            f"{scheme}://bucket/prefix alone, and give them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or as a profile (AWS_PROFILE)"
        )
    if scheme not in SCHEMES:
        raise RunError(
            f"{scheme}:// is not a bucket; a run is in a folder or at {', '.join(SCHEMES)}://bucket/prefix"
        )
    return text


def of(place: str | Path, copy: Path | None = None) -> "Folder | Bucket":
    """The storage of a run at `place`; `copy`: where a bucket's working copy lies, if not in the cache."""
    place = named(place)
    return Folder(place) if isinstance(place, Path) else Bucket(place, copy)


class Folder:
    """A run that is a folder: what is written is where it belongs, so there is nothing to pull, push or drop."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.place = str(folder)

    @property
    def address(self) -> str:
        """What names this run from anywhere on this machine, or on those that mount the same share there."""
        return str(self.folder.resolve())

    def sub(self, name: str) -> "Folder":
        return Folder(self.folder / name)

    def where(self, path: Path) -> str:
        return str(path)

    def exists(self) -> bool:
        return (self.folder / "records").is_dir() or (self.folder / MARKER).is_file()

    def prepare(self) -> None:
        """Make the folder, and sure that it can be written; RunError says who must do what otherwise."""
        _identities.pop(self.folder.absolute(), None)  # a run that begins makes it anew
        try:
            make(self.folder)
            self.probe()
        except OSError as error:
            raise RunError(
                f"cannot write in {self.place}: {error.strerror}; choose another folder with --out (OUT=… of make)"
            ) from None

    def claim(self) -> str:
        """The identity of this folder, given to it now where it has none; of two who do so at once, one wins."""
        if (found := self.read(MARKER)) is None:
            aside = scratch(self.folder / MARKER)
            aside.write_text(secrets.token_hex(16), encoding="utf-8")
            try:
                os.link(aside, self.folder / MARKER)
            except FileExistsError:
                pass
            except OSError:  # storage without links
                aside.replace(self.folder / MARKER)
            finally:
                aside.unlink(missing_ok=True)
            found = self.read(MARKER)
        if not found.isalnum():
            raise RunError(f"{self.folder / MARKER} is damaged, which says what run this is: remove that file")
        return found.decode()

    def recognise(self, identity: str) -> None:
        recognise(self.folder, identity)

    def probe(self) -> None:
        """Write and remove a file; OSError where that cannot be done."""
        probe = scratch(self.folder / "probe")
        probe.write_text("", encoding="utf-8")
        probe.unlink()

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None where there is none."""
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file, in one attempt."""
        put(self.folder / name, lambda aside: aside.write_bytes(content), patience_s=0)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def pull(self, path: Path) -> bool:
        """Whether there is this file; a share that is away does not pass for a missing one."""
        return path.is_file() or patiently(path.is_file, path)

    def pull_all(self, folder: Path, prefix: str = "") -> list[Path]:
        """The files in `folder` whose names begin with `prefix`, by name."""
        patiently(lambda: None, folder)  # a share that is away must not pass for an empty folder
        return sorted(path for path in folder.glob(f"{prefix}*") if path.is_file() and not path.name.startswith("."))

    def names(self, folder: Path) -> set[str]:
        """The names of the files in `folder`, without fetching them."""
        return {path.name for path in self.pull_all(folder)}

    def holds(self) -> set[str]:
        """The names of everything in the folder. RunError where it is a file."""
        if self.folder.is_file():
            raise RunError(f"{self.place} is a file; a run is a folder")
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def folders_with(self, folder: str, name: str) -> set[str]:
        """The names of the folders in `folder` that hold a file `name`."""
        return {path.parent.name for path in (self.folder / folder).glob(f"*/{name}")}

    def age_s(self, name: str) -> float:
        """Seconds since a file was written, by the clock of the storage; by this machine's where it is read-only."""
        written = (self.folder / name).stat().st_mtime
        try:
            return _clock(self.folder) - written
        except OSError:
            return time.time() - written

    def push(self, path: Path) -> None:
        pass

    def drop(self, path: Path) -> None:
        pass


class Bucket:
    """A run that lies in a bucket, with a working copy in a folder of this machine.

    A put is atomic: an object is the old or the new one. The copy's files carry the modification times of their
    objects, so that only what changed is fetched again.
    """

    def __init__(self, url: str, copy: Path | None = None):
        bare, query, options = url.partition("?")
        self.place = self.address = bare.rstrip("/") + query + options
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self.folder = copy or default_folder() / "runs" / digest
        self._pushed: dict[Path, tuple[int, int]] = {}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the run's path in it."""
        fs = _pyarrow_fs()
        url, _, options = self.place.partition("?")
        if url.startswith("s3://") and "allow_delayed_open" not in options:
            options = "&".join(filter(None, (options, "allow_delayed_open=true")))  # small objects in one request
        try:
            files, root = fs.FileSystem.from_uri(f"{url}?{options}" if options else url)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.place} cannot be opened: {error}") from None
        if not root:
            raise RunError(f"{self.place} names no bucket; write {url.partition('://')[0]}://bucket/prefix")
        return files, root

    def sub(self, name: str) -> "Bucket":
        return Bucket(self._url(name), self.folder / name)

    def where(self, path: Path) -> str:
        """The URL of a file of the copy."""
        return self._url(path.relative_to(self.folder).as_posix()).partition("?")[0]

    def _url(self, name: str) -> str:
        url, query, options = self.address.partition("?")
        return f"{url}/{name}{query}{options}"

    def _key(self, path: Path | str) -> str:
        name = path.relative_to(self.folder).as_posix() if isinstance(path, Path) else path
        return f"{self._opened[1]}/{name}".removesuffix("/.")

    def _do(self, attempt: Callable[[], T], patience_s: float | None = None) -> T:
        """One request, waiting where it must; RunError in words where the bucket refuses it."""
        try:
            return patiently(attempt, self.place, patience_s)
        except StorageError:
            raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunError(self._refusal(str(error))) from error

    def _refusal(self, words: str) -> str:
        bucket = self._opened[1].partition("/")[0]
        if "NO_SUCH_BUCKET" in words:
            return f"there is no bucket {bucket} for {self.place}; make it first, or correct the name"
        if re.search(r"ACCESS_DENIED|HTTP status 40[13]|Forbidden", words):
            return (
                f"{self.place}: no permission; it needs reading, writing, listing and deleting in {bucket} for the "
                "credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, …)"
            )
        return f"{self.place} cannot be used: {words}"

    def exists(self) -> bool:
        return self.read(MARKER) is not None or bool(
            self._do(partial(self._list, self.folder / "records"), patience_s=0)
        )

    def prepare(self) -> None:
        """Make sure that the bucket is there and can be written; RunError says who must do what otherwise."""
        make(self.folder)
        files, root = self._opened
        bucket = root.partition("/")[0]
        if self._do(lambda: files.get_file_info(bucket), patience_s=0).type == _pyarrow_fs().FileType.NotFound:
            raise RunError(self._refusal("NO_SUCH_BUCKET"))
        self.probe()

    def claim(self) -> str:
        """The identity of this run, given to it now where it has none."""
        if self.read(MARKER) is None:
            self.write(MARKER, secrets.token_hex(16).encode())
        return self.read(MARKER).decode()

    def recognise(self, identity: str) -> None:
        """A bucket that cannot be reached says so; it never passes for an empty one."""

    def probe(self) -> None:
        name = scratch(Path("probe")).name
        self.write(name, b"", patience_s=0)
        self.delete(name)

    def read(self, name: str) -> bytes | None:
        """The content of a small object, None where there is none."""

        def attempt() -> bytes | None:
            try:
                with self._opened[0].open_input_stream(self._key(name)) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

        return self._do(attempt, patience_s=0)

    def write(self, name: str, content: bytes, patience_s: float | None = 0) -> None:
        """Replace a small object."""
        self._do(partial(self._put, self._key(name), content), patience_s)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._do(lambda: self._opened[0].delete_file(self._key(name)), patience_s=0)

    def pull(self, path: Path) -> bool:
        """Fetch one file where it changed; whether there is such an object."""
        info = self._do(lambda: self._opened[0].get_file_info(self._key(path)))
        if not info.is_file:
            return False
        self._fetch(path, info)
        return True

    def pull_all(self, folder: Path, prefix: str = "") -> list[Path]:
        """Fetch the objects in `folder` whose names begin with `prefix` and that changed; the files, by name.

        What lies in the copy alone is not among them.
        """
        found = self._do(partial(self._list, folder))
        there = {path: info for path, info in found.items() if path.name.startswith(prefix)}
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda one: self._fetch(*one), there.items()))
        return sorted(there)

    def names(self, folder: Path) -> set[str]:
        """The names of the objects in `folder`, without fetching them."""
        return {path.name for path in self._do(partial(self._list, folder))}

    def _list(self, folder: Path) -> dict[Path, Any]:
        selector = _pyarrow_fs().FileSelector(self._key(folder), allow_not_found=True)
        found = self._opened[0].get_file_info(selector)
        return {
            folder / info.base_name: info for info in found if info.is_file and not info.base_name.startswith(".")
        }

    def _fetch(self, path: Path, info: Any) -> None:
        if path.exists() and _stamp(path) == (info.size, info.mtime_ns):
            return

        def write(aside: Path) -> None:
            with self._opened[0].open_input_stream(info.path) as stream, aside.open("wb") as file:
                while block := stream.read(2**24):
                    file.write(block)
            os.utime(aside, ns=(info.mtime_ns, info.mtime_ns))

        with suppress(FileNotFoundError):  # deleted since it was listed
            self._do(partial(put, path, write))
        self._pushed[path] = (info.size, info.mtime_ns)

    def push(self, path: Path) -> None:
        """Store a file of the copy, or the files in a folder, where they changed since they were pushed or pulled."""
        if path.is_dir():
            for file in sorted(file for file in path.iterdir() if not file.name.startswith(".")):
                self.push(file)
        elif path.exists() and self._pushed.get(path) != _stamp(path):
            self._do(partial(self._send, path))

    def _send(self, path: Path) -> None:
        import pyarrow

        size, key = path.stat().st_size, self._key(path)
        if size:
            with pyarrow.memory_map(str(path)) as file:
                self._put(key, file.read_buffer())
        else:
            self._put(key, b"")
        info = self._opened[0].get_file_info(key)
        if info.size != size:
            raise OSError(errno.EIO, f"{info.size} of {size} bytes of {key} arrived")
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
        self._pushed[path] = (size, info.mtime_ns)

    def _put(self, key: str, content: Any) -> None:
        with self._opened[0].open_output_stream(key) as stream:
            stream.write(content)

    def holds(self) -> set[str]:
        """The first part of the names of everything at this place."""
        selector = _pyarrow_fs().FileSelector(self._opened[1], allow_not_found=True)
        return {info.base_name for info in self._do(lambda: self._opened[0].get_file_info(selector), patience_s=0)}

    def folders_with(self, folder: str, name: str) -> set[str]:
        """The names of the folders in `folder` that hold an object `name`."""
        fs, root = _pyarrow_fs(), self._key(folder)
        selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
        found = self._do(lambda: self._opened[0].get_file_info(selector))
        return {Path(info.path).parent.name for info in found if info.is_file and info.base_name == name}

    def age_s(self, name: str) -> float:
        """Seconds since an object was written, by the bucket's clock; by this machine's where it is read-only."""

        def written_ns(one: str) -> int:
            return self._do(lambda: self._opened[0].get_file_info(self._key(one)), patience_s=0).mtime_ns

        probe = scratch(Path("probe")).name
        try:
            self.write(probe, b"")
            new = written_ns(probe)
            self.delete(probe)
        except RunError:  # read-only
            new = time.time_ns()
        return (new - written_ns(name)) / 1e9

    def drop(self, path: Path) -> None:
        """Delete the object of a file, or those in a folder."""
        files = self._opened[0]
        infos = [
            *self._do(partial(self._list, path)).values(),
            self._do(lambda: files.get_file_info(self._key(path))),
        ]
        for info in infos:
            if info.is_file:
                with suppress(FileNotFoundError):
                    self._do(partial(files.delete_file, info.path))
            self._pushed.pop(self.folder / Path(info.path).relative_to(self._opened[1]), None)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _pyarrow_fs() -> Any:
    try:
        from pyarrow import fs
    except ModuleNotFoundError as error:
        raise RunError(
            "a run in a bucket is read with pyarrow, which is not installed: pip install pyarrow (a run in a folder "
            "needs none)"
        ) from error
    return fs
