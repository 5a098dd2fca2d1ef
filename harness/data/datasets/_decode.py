"""Decode any image file to 8-bit grey or RGB: the same picture has the same pixels in every format."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from harness.data.datasets._dataset import DatasetError

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
ORIENTATION = 0x0112  # the EXIF tag
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
KEY_SCALE = {"L;2": 85, "L;4": 17}  # factor from a grey value of 2 or 4 bits, as in a colour key, to 8


def decode(source: str | Path | BinaryIO | Image.Image, key: str) -> Image.Image:
    """Decode one image file, or an image that Pillow opened, to 8-bit RGB, or L if it is grey.

    The image is rotated by its EXIF orientation. Transparency, as a channel or a colour key, is blended with white.
    16-bit grey is divided by 257. Of an animation, the first frame is used. Colour profiles are not applied, and CMYK
    is converted without one, as in torchvision. Unreadable metadata are ignored.

    Raises DatasetError naming `key` if the image cannot be read.
    """
    try:
        return _decoded(source)
    except Image.DecompressionBombError as error:
        pixels, limit = map(int, re.findall(r"\d+", str(error)))
        raise DatasetError(
            f"{key}: it has {pixels:,} pixels, more than the limit of {limit:,}: save it at a "
            "smaller size; networks see a few hundred pixels per side"
        ) from error
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error on bad bytes
        if not isinstance(source, Image.Image):
            with suppress(Exception):
                return _decoded(_without_metadata(source))
        raise DatasetError(f"{key}: {type(error).__name__}: {error}") from error


def is_plain_jpeg(content: bytes) -> bool:
    """Return whether `content` is a JPEG file, grey or RGB and upright, which any decoder shows alike."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) not in ROTATIONS
    except Exception:  # Pillow's parser raises anything on bad bytes
        return False


def _decoded(source: str | Path | BinaryIO | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return _upright(source)
    with Image.open(source) as image:
        return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image in L or RGB, rotated by its EXIF orientation."""
    tiles = getattr(image, "tile", None)  # Pillow clears them once the pixels are loaded
    raw = tiles[0][3] if tiles else None
    image.load()
    rotation = ROTATIONS.get(_orientation(image))
    upright = image if rotation is None else image.transpose(rotation)
    upright.info = image.info
    return _eight_bit(upright, raw)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 0 if there is none or the metadata are broken."""
    try:
        return image.getexif().get(ORIENTATION, 0)
    except Exception:  # Pillow's parser raises anything on bad bytes
        return 0


def _eight_bit(image: Image.Image, raw: str | tuple | None) -> Image.Image:
    """Return the image in L or RGB, on white; `raw` is Pillow's name for the pixel format of its file."""
    key = image.info.get("transparency")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values {values.min()} to {values.max()} are not 16-bit")
        if key is not None:
            values[values == key] = 65535
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode in ("1", "L", "RGB"):
        plain = image.convert("L") if image.mode == "1" else image
        return plain if key is None else _on_white(plain, _in_eight_bits(key, image.mode, raw))
    if image.has_transparency_data:
        ink = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")
    return image.convert("RGB")


def _in_eight_bits(key: int | tuple[int, ...], mode: str, raw: str | tuple | None) -> np.ndarray:
    """Return the colour key in 8 bits, since files state it in their own number of bits."""
    if mode == "1":
        return np.array(255 if key else 0)
    if raw == "RGB;16B":
        return np.array(key) >> 8
    return np.array(key) * (KEY_SCALE.get(raw, 1) if isinstance(raw, str) else 1)


def _on_white(image: Image.Image, key: np.ndarray) -> Image.Image:
    pixels = np.array(image)
    pixels[(pixels == key).all(axis=2) if pixels.ndim == 3 else pixels == key] = 255
    return Image.fromarray(pixels)


def _without_metadata(source: str | Path | BinaryIO) -> BinaryIO:
    """Return a JPEG or PNG file without metadata that its pixels do not need. Raise ValueError for other files."""
    if isinstance(source, str | Path):
        content = Path(source).read_bytes()
    else:
        source.seek(0)
        content = source.read()
    for begin, parts in ((PNG, _png_parts), (JPEG, _jpeg_parts)):
        if content.startswith(begin):
            return io.BytesIO(begin + b"".join(parts(content)))
    raise ValueError("neither JPEG nor PNG")


def _png_parts(content: bytes) -> Iterator[bytes]:
    """Yield the chunks that define the pixels, and the EXIF chunk if it is intact."""
    place = len(PNG)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunk = content[place : place + 12 + length]
        kind = chunk[4:8]
        intact = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and intact):
            yield chunk
        place += len(chunk)


def _jpeg_parts(content: bytes) -> Iterator[bytes]:
    """Yield the segments that define the pixels, and the EXIF segment."""
    place = len(JPEG)
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place:end]
        is_metadata = (0xE1 <= segment[1] <= 0xEF and segment[1] != 0xEE) or segment[1] == 0xFE  # Adobe's marks CMYK
        if not is_metadata or segment[4:10] == b"Exif\0\0":
            yield segment
        place = max(end, place + 2)
    yield content[place:]
