"""Walk through a folder: list each image file once, and ignored files by reason.

Links to folders are followed. A known suffix decides whether a file is an image, and otherwise its content, so that
hundreds of thousands of files on a network need not be opened.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import cache

from PIL import Image

from harness.data.datasets._dataset import DatasetError, PassedOver
from harness.errors import first_few

IMAGE = re.compile(r"\.(jpe?g|jpe|jfif|png|bmp|dib|gif|webp|tiff?|p[bgpn]m|jp2|avif)", re.IGNORECASE)
OTHER = re.compile(
    r"\.(txt|md|html?|jsonl?|xml|[ct]sv|ya?ml|mat|np[yz]|pkl|pt|h5|py|sh|log|zip|tar|t?gz|pdf|mp4|avi|mov|db|ini)",
    re.IGNORECASE,
)
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "BMP",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
)  # by their first bytes
SYSTEM_FILE = re.compile(
    r"(eh)?thumbs\.db|desktop\.ini|\.ds_store|\.apple(double|single)|\.lsoverride|\.fseventsd|\.spotlight-v100|__macosx|"
    r"\.trashes|\.trash-.*|\.temporaryitems|temporary items|network trash folder|icon\r|\._.*|\.nfs.*|"
    r"@eadir|@tmp|@recycle|@recently-snapshot|[#.]recycle|[#.]snapshots?|\.@__thumb|syno(photo|file)_thumb.*|"
    r"synoindex_media.*|\$recycle\.bin|recycler|system volume information|lost\+found",
    re.IGNORECASE,
)

SYSTEM = "files and folders of an operating system or a storage device"
HIDDEN = "hidden files and folders"
NO_FILES = "pipes, sockets and devices"
EMPTY = "empty folders"
LINKED = "links to a folder that is indexed already"
NO_IMAGES = "files that are not images"


def clutter(name: str) -> str | None:
    """Return why a file or folder of this name is ignored; None if it is not."""
    if SYSTEM_FILE.fullmatch(name):
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


@dataclass
class Walk:
    """A walk through the folder `root` that collects ignored and unreadable paths, relative to `root`."""

    root: str
    ignored: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[str] = field(default_factory=list)

    def entries(self, folder: str = "") -> tuple[list[str], list[str], list[str]]:
        """Return the folders, links to folders and files in a folder, each sorted by name.

        Clutter, special files and unreadable entries are recorded; an ignored folder counts once.
        """
        folders, links, files = [], [], []
        try:
            with os.scandir(os.path.join(self.root, folder)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append(f"{folder or self.root}: {error.strerror}")
            return folders, links, files
        if not entries:
            self.ignored[EMPTY].append(folder)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if reason := clutter(entry.name):
                    self.ignored[reason].append(path)
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    files.append(path)
                elif entry.is_symlink() and not os.path.exists(entry):
                    self.unreadable.append(f"{path}: a broken link")
                else:
                    self.ignored[NO_FILES].append(path)
            except OSError as error:  # such as a link to itself
                self.unreadable.append(f"{path}: {error.strerror}")
        return folders, links, files

    def files(self, folder: str = "", above: tuple[str, ...] = ()) -> list[str]:
        """Return every file below a folder once. Folders are visited before links to them, and no link twice.

        above: folders that a link must not lead back to.
        """
        all_files, folders, links = [], deque([folder]), deque()
        seen = {identity for path in above if (identity := self._identity(path))}
        while folders or links:
            path = folders.popleft() if folders else links.popleft()
            identity = self._identity(path)
            if identity is not None and identity in seen:
                self.ignored[LINKED].append(path)
                continue
            if identity is not None:
                seen.add(identity)
            inner, inner_links, files = self.entries(path)
            folders.extend(inner)
            links.extend(inner_links)
            all_files += files
        return sorted(all_files, key=lambda path: path.split("/"))

    def images(self, folder: str = "", above: tuple[str, ...] = ()) -> list[str]:
        """Return every image file below a folder, sorted; see `files`."""
        images = []
        for path in self.files(folder, above):
            (images if self._is_image(path) else self.ignored[NO_IMAGES]).append(path)
        return images

    def require_readable(self, name: str) -> None:
        """Raise DatasetError naming what could not be read, since a dataset must not shrink silently."""
        if self.unreadable:
            raise DatasetError(
                f"{name}: {len(self.unreadable)} files or folders in {self.root} cannot be read "
                f"({first_few(self.unreadable)}): grant yourself permission (chmod -R u+rX), or remove them"
            )

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """Return what was ignored so far, by reason."""
        return tuple(PassedOver.of(reason, paths) for reason, paths in sorted(self.ignored.items()) if paths)

    def _identity(self, path: str) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.join(self.root, path))
        except OSError:
            return None  # listing it will report why
        return status.st_dev, status.st_ino

    def _is_image(self, path: str) -> bool:
        suffix = os.path.splitext(path)[1]
        if OTHER.fullmatch(suffix):
            return False
        if IMAGE.fullmatch(suffix):
            return True
        try:
            return begins_as_image(os.path.join(self.root, path))
        except OSError as error:
            self.unreadable.append(f"{path}: {error.strerror}")
            return False


def begins_as_image(path: str) -> bool:
    """Return whether Pillow recognises a file as an image by its first bytes. Raise OSError."""
    with open(path, "rb") as file:
        try:
            Image.open(file, formats=_formats()).close()
        except Image.DecompressionBombError:
            return True
        except Exception as error:  # Pillow raises anything on bytes that only look like an image
            if getattr(error, "errno", None):
                raise
            return False
    return True


@cache
def _formats() -> list[str]:
    Image.init()
    return [form for form in FORMATS if form in Image.OPEN]
