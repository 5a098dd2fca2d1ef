"""Characters in the typefaces that matplotlib ships (DejaVu, STIX): no download, class = character.

Every character that at least 13 typefaces contain is drawn once in each. Drawings that would make the task trivial
or unfair are removed first (see `_clean`). Each remaining one is then rotated, scaled and shifted by a jitter that
depends only on its code point and typeface, so the images are the same on every machine with the same Pillow and
FreeType. Half of the classes are the test split: the first in the order of
sha256("test-1" + class name).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont, features

from harness.data.cache import building
from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.splits import hash_order

NEEDS_DATA = False

SIDE_PX = 32
LEAST_TYPEFACES = 13
LEAST_IMAGES = 8  # of a class, after the clean-up
REFERENCE = "DejaVuSans"
# The other files that matplotlib ships are excluded: Computer Modern and STIXNonUni put other characters
# at their code points, the STIXSiz faces are brackets of one design in five sizes, the Display faces hold a few
# symbols, and LastResort draws the same box for a whole script.
TYPEFACES = re.compile(
    r"DejaVu(Sans|SansMono|Serif)(-(Bold|Oblique|Italic|BoldOblique|BoldItalic))?|STIXGeneral(Bol|Italic|BolIta)?"
)
# Letters, numbers, punctuation and symbols. Marks (M) are drawn on top of another character, and separators
# and controls (Z, C) are not drawn at all.
CATEGORIES = "LNPS"

OVERSAMPLING = 4  # drawn at 128 px, jittered there, then averaged down: as smooth as a scan
EM_PX = 22.0  # size of the em square in the 32 px image: room for accents, descenders and the jitter
BASELINE = 0.70  # height of the baseline, as a share of the side from the top
ROTATION_DEGREES = 15.0
SCALE = (0.8, 1.2)
SHIFT = 0.1  # of the side

Drawing = tuple[int, str]  # code point, typeface


@dataclass(frozen=True)
class _Glyphs:
    """The rendered set, as stored in the cache."""

    pixels: np.ndarray  # uint8 (n, 32, 32), white on black
    drawings: list[Drawing]
    class_of: list[int]  # (n,) the lowest code point of each drawing's class


def load(data: Path | None, cache: Path, *, classes: int | None = None) -> Dataset:
    """Draw the characters, or load them from `cache` if they were drawn before.

    classes: use only this many classes of each split, the first in hash order; None uses all.

    Raises DatasetError if matplotlib's typefaces are missing or `classes` is out of range.
    """
    glyphs = _open(cache)
    characters = sorted(set(glyphs.class_of))
    names = [_class_name(character) for character in characters]
    order = hash_order(names, "test-1")
    half = math.ceil(len(order) / 2)
    if classes is not None and not (isinstance(classes, int) and 2 <= classes <= len(order) - half):
        raise DatasetError(f"glyphs: classes = {classes!r}, expected 2 to {len(order) - half} (of each split)")
    split_of = dict.fromkeys((characters[c] for c in order[:half][:classes]), "test")
    split_of |= dict.fromkeys((characters[c] for c in order[half:][:classes]), "train")
    present = sorted(split_of)
    rows = [i for i, character in enumerate(glyphs.class_of) if character in split_of]
    pixels = glyphs.pixels[rows]
    return Dataset(
        name="glyphs",
        keys=tuple(_key(*glyphs.drawings[i]) for i in rows),
        labels=np.searchsorted(present, [glyphs.class_of[i] for i in rows]).astype(np.int64),
        class_names=tuple(_class_name(character) for character in present),
        split=np.array([split_of[glyphs.class_of[i]] for i in rows]),
        read=partial(_read, pixels),
        mirrored=False,
        pixel_fingerprint=hashlib.sha256(pixels.data).hexdigest(),
    )


def _open(cache: Path) -> _Glyphs:
    typefaces = _typefaces()
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(f"{PIL.__version__} {features.version('freetype2')}".encode())
    for file in typefaces.values():
        digest.update(file.read_bytes())
    path = cache / f"glyphs-{digest.hexdigest()[:16]}.npz"
    if (glyphs := _stored(path)) is not None:
        return glyphs
    with building(path) as scratch:
        if (glyphs := _stored(path)) is not None:
            return glyphs
        glyphs = _render(typefaces)
        with open(scratch, "wb") as file:
            index = json.dumps([glyphs.drawings, glyphs.class_of])
            np.savez(file, pixels=glyphs.pixels, index=np.frombuffer(index.encode(), dtype=np.uint8))
    return glyphs


def _stored(path: Path) -> _Glyphs | None:
    """Return the set in a cache file; None if it is missing, unreadable or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            drawings, class_of = json.loads(stored["index"].tobytes())
            return _Glyphs(stored["pixels"], [(point, face) for point, face in drawings], class_of)
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, KeyError):
        return None


def _typefaces() -> dict[str, Path]:
    """Return name and file of each text typeface of matplotlib, without importing it, which would take a second."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or not package.submodule_search_locations:
        raise DatasetError("glyphs are drawn in the typefaces of matplotlib, which is not installed")
    folder = Path(package.submodule_search_locations[0]) / "mpl-data/fonts/ttf"
    files = {file.stem: file for file in sorted(folder.glob("*.ttf")) if TYPEFACES.fullmatch(file.stem)}
    if len(files) < LEAST_TYPEFACES or REFERENCE not in files:
        raise DatasetError(f"glyphs: {len(files)} text typefaces in {folder}, at least {LEAST_TYPEFACES} are needed")
    return files


def _render(typefaces: dict[str, Path]) -> _Glyphs:
    fonts = {
        name: ImageFont.truetype(file, size=round(EM_PX * OVERSAMPLING), layout_engine=ImageFont.Layout.BASIC)
        for name, file in typefaces.items()
    }
    images = {(point, face): _shrink(_draw(fonts[face], point)) for point, face in _characters(typefaces)}
    class_of = _clean(images)
    drawings = sorted(class_of, key=lambda drawing: (class_of[drawing], *drawing))
    pixels = np.stack([np.asarray(_jitter(_draw(fonts[face], point), _key(point, face))) for point, face in drawings])
    return _Glyphs(pixels, drawings, [class_of[drawing] for drawing in drawings])


def _characters(typefaces: dict[str, Path]) -> list[Drawing]:
    """Return the (character, typeface) pairs of all characters that enough typefaces contain, in order."""
    from fontTools.ttLib import TTFont

    held = {}
    for name, file in typefaces.items():
        with TTFont(file, lazy=True) as font:
            held[name] = set(font.getBestCmap() or ())
    faces = Counter(point for points in held.values() for point in points)
    return sorted(
        (point, name)
        for name, points in held.items()
        for point in points
        if faces[point] >= LEAST_TYPEFACES and unicodedata.category(chr(point))[0] in CATEGORIES
    )


def _draw(font: ImageFont.FreeTypeFont, point: int) -> Image.Image:
    """Draw the character in white on a black 128 px square: centred, with its baseline at a fixed height."""
    side = SIDE_PX * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    left, _, right, _ = font.getbbox(chr(point), anchor="ls")
    where = (round((side - left - right) / 2), round(BASELINE * side))
    ImageDraw.Draw(canvas).text(where, chr(point), font=font, anchor="ls", fill=255)
    return canvas


def _shrink(canvas: Image.Image) -> Image.Image:
    return canvas.reduce(OVERSAMPLING)


def _clean(images: dict[Drawing, Image.Image]) -> dict[Drawing, int]:
    """Return the lowest code point of the class of each remaining drawing.

    Otherwise a fifth of the drawings would have an exact copy before the jitter: in the same class, which makes
    retrieval trivial, or in another, which makes it random.
    """
    ink = {drawing: image.tobytes() for drawing, image in images.items() if image.getbbox()}
    # 1. Characters with one drawing in the reference typeface are one class: Latin A, Greek Alpha, Cyrillic A.
    first_with: dict[bytes, int] = {}
    merged = {
        point: first_with.setdefault(pixels, point) for (point, face), pixels in ink.items() if face == REFERENCE
    }
    # 2. Of equal drawings in one class, keep the first.
    owners: dict[bytes, dict[int, Drawing]] = defaultdict(dict)
    for drawing, pixels in ink.items():
        owners[pixels].setdefault(merged.get(drawing[0], drawing[0]), drawing)
    # 3. Remove drawings that are still in two classes.
    kept = {
        drawing: character for owner in owners.values() if len(owner) == 1 for character, drawing in owner.items()
    }
    # 4. Remove classes that lost half of their drawings or more: symbols that most typefaces draw alike.
    size = Counter(kept.values())
    return {drawing: character for drawing, character in kept.items() if size[character] >= LEAST_IMAGES}


def _jitter(canvas: Image.Image, key: str) -> Image.Image:
    """Return the 128 px drawing at 32 px, rotated, scaled and shifted by amounts from the hash of the key."""
    digest = hashlib.sha256(f"jitter-1 {key}".encode()).digest()
    angle, scale, right, down = (int.from_bytes(digest[8 * i : 8 * i + 8], "big") / 2**64 for i in range(4))
    angle = math.radians(ROTATION_DEGREES * (2 * angle - 1))
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * scale
    side = canvas.width
    right, down = (side * SHIFT * (2 * shift - 1) for shift in (right, down))
    cos, sin, centre = math.cos(angle) / scale, math.sin(angle) / scale, side / 2
    # Pillow expects the inverse map, from positions in the result to positions in the drawing.
    x = centre - cos * (centre + right) - sin * (centre + down)
    y = centre + sin * (centre + right) - cos * (centre + down)
    moved = canvas.transform(
        canvas.size, Image.Transform.AFFINE, (cos, sin, x, -sin, cos, y), Image.Resampling.BILINEAR
    )
    return _shrink(moved)


def _class_name(character: int) -> str:
    return f"U+{character:04X} {unicodedata.name(chr(character))}"


def _key(point: int, typeface: str) -> str:
    return f"U+{point:04X}/{typeface}"


def _read(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index])
