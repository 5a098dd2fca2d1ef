"""Two archives of Omniglot's layout that overlap: four alphabets of two characters, four drawings each."""

import hashlib
import io
import zipfile
from pathlib import Path

from PIL import Image

SMALL1, SMALL2 = ("Balinese", "Greek", "Latin"), ("Greek", "Latin", "Tagalog")


def drawing(key: str) -> bytes:
    """The PNG of a drawing, black on white, in 1 bit like the official ones; another one for every key."""
    bits = hashlib.sha256(key.encode()).digest() * 36
    file = io.BytesIO()
    Image.frombytes("1", (96, 96), bits).save(file, "PNG")
    return file.getvalue()


def keys(alphabets) -> list[str]:
    return [f"{a}/character{c:02}/{c:04}_{d:02}.png" for a in alphabets for c in (1, 2) for d in (1, 2, 3, 4)]


def write(folder: Path) -> Path:
    for name, alphabets in (("images_background_small1", SMALL1), ("images_background_small2", SMALL2)):
        with zipfile.ZipFile(folder / f"omniglot_{name}.zip", "w") as archive:
            for key in keys(alphabets):
                archive.writestr(f"{name}/{key}", drawing(key))
                archive.writestr(f"__MACOSX/{name}/{key.replace('/0', '/._0')}", b"resource fork")
    return folder
