"""Everything in a folder: each image file once, and what is passed over by reason.

Links to folders are followed. Whether a file is an image is told by a known suffix, and by its content otherwise:
hundreds of thousands of files on a network need not be opened to be listed.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import cache

from PIL import Image

from harness.data.datasets._dataset import DatasetError, PassedOver
from harness.errors import some

IMAGE = re.compile(r"\.(jpe?g|jpe|jfif|png|bmp|dib|gif|webp|tiff?|p[bgpn]m|jp2|avif)", re.IGNORECASE)
OTHER = re.compile(
    r"\.(txt|md|html?|jsonl?|xml|[ct]sv|ya?ml|mat|np[yz]|pkl|pt|h5|py|sh|log|zip|tar|t?gz|pdf|mp4|avi|mov|db|ini)",
    re.IGNORECASE,
)
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")  # told by how they begin
SYSTEM_FILE = re.compile(
    r"(eh)?thumbs\.db|desktop\.ini|\.ds_store|\.apple(double|single)|\.lsoverride|\.fseventsd|\.spotlight-v100|__macosx|"
    r"\.trashes|\.trash-.*|\.temporaryitems|temporary items|network trash folder|icon\r|\._.*|\.nfs.*|"
    r"@eadir|@tmp|@recycle|@recently-snapshot|[#.]recycle|[#.]snapshots?|\.@__thumb|syno(photo|file)_thumb.*|"
    r"synoindex_media.*|\$recycle\.bin|recycler|system volume information|lost\+found",
    re.IGNORECASE,
)

SYSTEM = "files and folders of an operating system or a storage box"
HIDDEN = "hidden files and folders"
NO_FILES = "pipes, sockets and devices"
EMPTY = "empty folders"
LINKED = "links to a folder that is indexed already"
NO_IMAGES = "files that are not images"


def clutter(name: str) -> str | None:
    """Why a file or folder of this name is passed over; None for any other."""
    if SYSTEM_FILE.fullmatch(name):
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


@dataclass
class Walk:
    """A walk through the folder `root`; what it passes over and cannot read adds up. Paths are relative to `root`."""

    root: str
    passed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[str] = field(default_factory=list)

    def entries(self, folder: str = "") -> tuple[list[str], list[str], list[str]]:
        """The folders, links to folders and files in a folder, each sorted by name.

        What is clutter, neither file nor folder, or not readable is noted; a folder that is passed over counts once.
        """
        folders, links, files = [], [], []
        try:
            with os.scandir(os.path.join(self.root, folder)) as listing:
                found = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append(f"{folder or self.root}: {error.strerror}")
            return folders, links, files
        if not found:
            self.passed[EMPTY].append(folder)
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if reason := clutter(entry.name):
                    self.passed[reason].append(path)
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    files.append(path)
                elif entry.is_symlink() and not os.path.exists(entry):
                    self.unreadable.append(f"{path}: a link that leads nowhere")
                else:
                    self.passed[NO_FILES].append(path)
            except OSError as error:  # such as a link to itself
                self.unreadable.append(f"{path}: {error.strerror}")
        return folders, links, files

    def files(self, folder: str = "", above: tuple[str, ...] = ()) -> list[str]:
        """Every file below a folder, once: folders themselves come before links to them, and no link is walked twice.

        above: folders that a link must not lead back to.
        """
        found, folders, links = [], deque([folder]), deque()
        seen = {identity for path in above if (identity := self._identity(path))}
        while folders or links:
            path = folders.popleft() if folders else links.popleft()
            identity = self._identity(path)
            if identity is not None and identity in seen:
                self.passed[LINKED].append(path)
                continue
            seen.add(identity)
            inner, inner_links, files = self.entries(path)
            folders.extend(inner)
            links.extend(inner_links)
            found += files
        return sorted(found, key=lambda path: path.split("/"))

    def images(self, folder: str = "", above: tuple[str, ...] = ()) -> list[str]:
        """Every image file below a folder, sorted; see `files`."""
        found = []
        for path in self.files(folder, above):
            (found if self._is_image(path) else self.passed[NO_IMAGES]).append(path)
        return found

    def refuse_unreadable(self, name: str) -> None:
        """Raise DatasetError naming what could not be read: a dataset never shrinks in silence."""
        if self.unreadable:
            raise DatasetError(
                f"{name}: {len(self.unreadable)} files or folders in {self.root} cannot be read "
                f"({some(self.unreadable)}): give yourself permission (chmod -R u+rX), or take them away"
            )

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """What was passed over so far."""
        return tuple(PassedOver.of(reason, paths) for reason, paths in sorted(self.passed.items()) if paths)

    def _identity(self, path: str) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.join(self.root, path))
        except OSError:
            return None  # listing it says why
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
    """Whether a file is one of the kinds of image that Pillow knows by how they begin. Raises OSError."""
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
