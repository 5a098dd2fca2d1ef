"""A run in a bucket, with a working copy on each machine; the only file that imports pyarrow."""

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from harness.data.cache import default_folder
from harness.runs.errors import RunError, StorageError
from harness.runs.files import make_folder, put, scratch_path
from harness.runs.patience import MARKER, retry

T = TypeVar("T")

THREADS = 32  # small objects cost a round trip each, not bandwidth


class Bucket:
    """The storage of a run in a bucket, with a working copy in a folder of this machine.

    Replacing an object is atomic. Files of the copy have the modification times of their objects, so that only
    changed objects are fetched again.
    """

    def __init__(self, url: str, copy: Path | None = None):
        bare, query, options = url.partition("?")
        self.place = self.address = bare.rstrip("/") + query + options
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self.folder = copy or default_folder() / "runs" / digest
        self._pushed: dict[Path, tuple[int, int]] = {}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path of the run in it."""
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

    def _do(self, request: Callable[[], T], longest_s: float | None = None) -> T:
        """Return the answer to a request, with retries. Raises RunError if the bucket refuses it."""
        try:
            return retry(request, self.place, longest_s)
        except StorageError:
            raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunError(self._refused(str(error))) from error

    def _refused(self, words: str) -> str:
        """Return what to do about an error of the bucket."""
        bucket = self._opened[1].partition("/")[0]
        if "NO_SUCH_BUCKET" in words:
            return f"there is no bucket {bucket} for {self.place}; create it, or correct the name"
        if re.search(r"ACCESS_DENIED|HTTP status 40[13]|Forbidden", words):
            return (
                f"{self.place}: no permission; allow reading, writing, listing and deleting in {bucket} for the "
                "credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, …)"
            )
        return f"{self.place} cannot be used: {words}"

    def exists(self) -> bool:
        return self.read(MARKER) is not None or bool(
            self._do(partial(self._list, self.folder / "records"), longest_s=0)
        )

    def prepare(self) -> None:
        """Check that the bucket exists and can be written. Raises RunError, with what to do, otherwise."""
        make_folder(self.folder)
        files, root = self._opened
        bucket = root.partition("/")[0]
        if self._do(lambda: files.get_file_info(bucket), longest_s=0).type == _pyarrow_fs().FileType.NotFound:
            raise RunError(self._refused("NO_SUCH_BUCKET"))
        self.probe()

    def claim(self) -> str:
        """Return the identity of this run, creating one if it has none."""
        if self.read(MARKER) is None:
            self.write(MARKER, secrets.token_hex(16).encode())
        identity = self.read(MARKER)
        assert identity is not None  # it was written just now, here or by another process
        return identity.decode()

    def expect(self, identity: str) -> None:
        """Nothing to do: a bucket that is unavailable raises an error and never looks empty."""

    def probe(self) -> None:
        """Write and delete an object. Raises RunError if that is impossible."""
        name = scratch_path(Path("probe")).name
        self.write(name, b"", longest_s=0)
        self.delete(name)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object; None if it does not exist."""

        def content() -> bytes | None:
            try:
                with self._opened[0].open_input_stream(self._key(name)) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

        return self._do(content, longest_s=0)

    def write(self, name: str, content: bytes, longest_s: float | None = 0) -> None:
        """Replace a small object."""
        self._do(partial(self._put, self._key(name), content), longest_s)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._do(lambda: self._opened[0].delete_file(self._key(name)), longest_s=0)

    def pull(self, path: Path) -> bool:
        """Fetch one file if it changed; return whether the object exists."""
        info = self._do(lambda: self._opened[0].get_file_info(self._key(path)))
        if not info.is_file:
            return False
        self._fetch(path, info)
        return True

    def pull_all(self, folder: Path, prefix: str = "") -> list[Path]:
        """Fetch the changed ones of the objects in `folder` with this prefix; return the files of all, by name.

        Files that are only in the copy are left out.
        """
        infos = self._do(partial(self._list, folder))
        matching = {path: info for path, info in infos.items() if path.name.startswith(prefix)}
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda item: self._fetch(*item), matching.items()))
        return sorted(matching)

    def names(self, folder: Path) -> set[str]:
        """Return the names of the objects in `folder`, without fetching them."""
        return {path.name for path in self._do(partial(self._list, folder))}

    def _list(self, folder: Path) -> dict[Path, Any]:
        selector = _pyarrow_fs().FileSelector(self._key(folder), allow_not_found=True)
        infos = self._opened[0].get_file_info(selector)
        return {
            folder / info.base_name: info for info in infos if info.is_file and not info.base_name.startswith(".")
        }

    def _fetch(self, path: Path, info: Any) -> None:
        if path.exists() and _stamp(path) == (info.size, info.mtime_ns):
            return

        def write(aside: Path) -> None:
            with self._opened[0].open_input_stream(info.path) as stream, aside.open("wb") as file:
                while block := stream.read(2**24):
                    file.write(block)
            os.utime(aside, ns=(info.mtime_ns, info.mtime_ns))

        with suppress(FileNotFoundError):  # it was deleted after it was listed
            self._do(partial(put, path, write))
        self._pushed[path] = (info.size, info.mtime_ns)

    def push(self, path: Path) -> None:
        """Store a file of the copy, or the files in a folder, if they changed since they were pushed or pulled."""
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

    def entries(self) -> set[str]:
        """Return the first part of the names of everything at this place."""
        selector = _pyarrow_fs().FileSelector(self._opened[1], allow_not_found=True)
        return {info.base_name for info in self._do(lambda: self._opened[0].get_file_info(selector), longest_s=0)}

    def folders_with(self, folder: str, name: str) -> set[str]:
        """Return the names of the folders in `folder` that contain an object `name`."""
        fs, root = _pyarrow_fs(), self._key(folder)
        selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
        infos = self._do(lambda: self._opened[0].get_file_info(selector))
        return {Path(info.path).parent.name for info in infos if info.is_file and info.base_name == name}

    def age_s(self, name: str) -> float:
        """Return the seconds since an object was written, by the bucket's clock (this machine's if read-only)."""

        def written_ns(name: str) -> int:
            return self._do(lambda: self._opened[0].get_file_info(self._key(name)), longest_s=0).mtime_ns

        probe = scratch_path(Path("probe")).name
        try:
            self.write(probe, b"")
            new = written_ns(probe)
            self.delete(probe)
        except RunError:  # read-only
            new = time.time_ns()
        return (new - written_ns(name)) / 1e9

    def drop(self, path: Path) -> None:
        """Delete the object of a file, or the objects in a folder."""
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
