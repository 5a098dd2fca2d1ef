"""A run in a folder: on a disk, or on a share that machines mount."""

import os
import secrets
import time
from pathlib import Path

from harness.runs.errors import RunError
from harness.runs.files import make_folder, put, scratch_path, storage_time
from harness.runs.patience import MARKER, expect_identity, forget_identity, retry


class Folder:
    """The storage of a run that is a folder: files are written where they belong, so nothing is pulled or pushed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.place = str(folder)

    @property
    def address(self) -> str:
        """The absolute path, which names this run on every machine that mounts the share there."""
        return str(self.folder.resolve())

    def sub(self, name: str) -> "Folder":
        return Folder(self.folder / name)

    def where(self, path: Path) -> str:
        return str(path)

    def exists(self) -> bool:
        return (self.folder / "records").is_dir() or (self.folder / MARKER).is_file()

    def prepare(self) -> None:
        """Make the folder. Raises RunError, with what to do, if it cannot be written."""
        forget_identity(self.folder)  # a run that begins may create the folder again
        try:
            make_folder(self.folder)
            self.probe()
        except OSError as error:
            raise RunError(
                f"cannot write in {self.place}: {error.strerror}; choose another folder with --out (OUT=… of make)"
            ) from None

    def claim(self) -> str:
        """Return the identity of this folder, creating one if it has none; of two that do so at once, one wins."""
        if (identity := self.read(MARKER)) is None:
            aside = scratch_path(self.folder / MARKER)
            aside.write_text(secrets.token_hex(16), encoding="utf-8")
            try:
                os.link(aside, self.folder / MARKER)
            except FileExistsError:
                pass
            except OSError:  # storage without links
                aside.replace(self.folder / MARKER)
            finally:
                aside.unlink(missing_ok=True)
            identity = self.read(MARKER)
        if identity is None or not identity.isalnum():
            raise RunError(f"{self.folder / MARKER}, which identifies this run, is damaged: remove that file")
        return identity.decode()

    def expect(self, identity: str) -> None:
        """From now on, write only while the folder has this identity."""
        expect_identity(self.folder, identity)

    def probe(self) -> None:
        """Write and remove a file. Raises OSError if that is impossible."""
        probe = scratch_path(self.folder / "probe")
        probe.write_text("", encoding="utf-8")
        probe.unlink()

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file, without waiting."""
        put(self.folder / name, lambda aside: aside.write_bytes(content), longest_s=0)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def pull(self, path: Path) -> bool:
        """Return whether the file exists; waits for a share that is unavailable."""
        return path.is_file() or retry(path.is_file, path)

    def pull_all(self, folder: Path, prefix: str = "") -> list[Path]:
        """Return the files in `folder` whose names begin with `prefix`, by name."""
        retry(lambda: None, folder)  # a share that is unavailable must not look like an empty folder
        return sorted(path for path in folder.glob(f"{prefix}*") if path.is_file() and not path.name.startswith("."))

    def names(self, folder: Path) -> set[str]:
        """Return the names of the files in `folder`."""
        return {path.name for path in self.pull_all(folder)}

    def entries(self) -> set[str]:
        """Return the names of everything in the run folder. Raises RunError if it is a file."""
        if self.folder.is_file():
            raise RunError(f"{self.place} is a file; a run is a folder")
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def folders_with(self, folder: str, name: str) -> set[str]:
        """Return the names of the folders in `folder` that contain a file `name`."""
        return {path.parent.name for path in (self.folder / folder).glob(f"*/{name}")}

    def age_s(self, name: str) -> float:
        """Return the seconds since a file was written, by the clock of the storage (of this machine if read-only)."""
        written = (self.folder / name).stat().st_mtime
        try:
            return storage_time(self.folder) - written
        except OSError:
            return time.time() - written

    def push(self, path: Path) -> None:
        pass

    def drop(self, path: Path) -> None:
        pass
