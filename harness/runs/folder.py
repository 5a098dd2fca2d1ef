"""A run that is a folder: a disk, or a share that machines mount."""

import os
import secrets
import time
from pathlib import Path

from harness.runs.errors import RunError
from harness.runs.files import clock, make, put, scratch
from harness.runs.patience import MARKER, forget, patiently, recognise


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
        forget(self.folder)  # a run that begins makes it anew
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
            return clock(self.folder) - written
        except OSError:
            return time.time() - written

    def push(self, path: Path) -> None:
        pass

    def drop(self, path: Path) -> None:
        pass
