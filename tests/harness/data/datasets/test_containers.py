"""The same picture in any container gives the same pixels, whatever metadata come with it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from harness.data.datasets import DatasetError
from harness.data.datasets._decode import decode

GREY = np.array([[0, 85, 170], [255, 85, 0]], dtype=np.uint8)  # values that 2, 4, 8 and 16 bits can all hold
RGB = np.stack([GREY, GREY.T.reshape(2, 3), 255 - GREY], axis=2)
CLEAR = GREY == 85  # what is transparent in the pictures that can be
OPAQUE = (255 * ~CLEAR).astype(np.uint8)


def stored(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def pixels(source):
    return np.asarray(decode(source, "x").convert("RGB"))


def png(bits, colour_type, samples, *chunks):
    """A PNG file by hand: `samples` (h, w) or (h, w, 3) in its own number of bits, and further chunks before them."""
    height, width = samples.shape[:2]
    unpacked = samples.reshape(height, -1)[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(unpacked.reshape(height, -1).astype(np.uint8), axis=1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_opaque_pictures(form, mode):
    image = Image.fromarray(GREY if mode == "L" else RGB)
    expected = np.asarray(image.convert("RGB"))
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(pixels(stored(image, form, **options)), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_is_blended_with_white(form, mode):
    image = Image.fromarray(GREY if mode == "LA" else RGB)
    expected = np.where(CLEAR[:, :, None], 255, np.asarray(image.convert("RGB")))
    image.putalpha(Image.fromarray(OPAQUE))
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert np.array_equal(pixels(stored(image, form, **options)), expected)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_grey_colour_key_is_the_same_as_an_alpha_channel(bits):
    most = 2**bits - 1
    key = (b"tRNS", struct.pack(">H", 85 * most // 255))
    found = pixels(io.BytesIO(png(bits, 0, GREY.astype(np.int64) * most // 255, key)))
    assert np.array_equal(found, np.where(CLEAR, 255, GREY)[:, :, None].repeat(3, axis=2))


def test_a_key_of_one_bit_and_of_colours():
    bits = np.array([[0, 1], [1, 0]])
    assert pixels(io.BytesIO(png(1, 0, bits, (b"tRNS", b"\0\0")))).min() == 255
    assert np.array_equal(pixels(io.BytesIO(png(1, 0, bits, (b"tRNS", b"\0\1"))))[:, :, 0], 255 * bits)
    first = RGB[0, 1]
    expected = np.where((first == RGB).all(axis=2)[:, :, None], 255, RGB)
    for depth, scale in ((8, 1), (16, 257)):
        key = (b"tRNS", struct.pack(">HHH", *(int(value) * scale for value in RGB[0, 1])))
        assert np.array_equal(pixels(io.BytesIO(png(depth, 2, RGB.astype(np.int64) * scale, key))), expected)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour(form):
    image = Image.fromarray(RGB).quantize(8)
    clear = image.getpixel((1, 0))
    expected = np.where((np.asarray(image) == clear)[:, :, None], 255, np.asarray(image.convert("RGB")))
    assert np.array_equal(pixels(stored(image, form, transparency=clear)), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(form, orientation):
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    drawn = np.full((16, 24, 3), 255, dtype=np.uint8)
    rows, columns = (slice(8) if side == 0 else slice(-8, None) for side in corner)
    drawn[rows, columns] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(stored(Image.fromarray(drawn), form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))
    assert found.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    assert found[2, 2].max() < 20
    assert (found.mean(axis=2) < 128).sum() == 64


def broken_exif(orientation):
    """EXIF whose resolution is a negative fraction, which Pillow reads and cannot write."""
    entries = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + struct.pack("<HHII", 0x11A, 10, 1, 38)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<Iii", 0, -1, 0)


def with_segment(marker, content):
    raw = stored(Image.new("RGB", (24, 16), (200, 30, 40)), "JPEG").getvalue()
    return raw[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + raw[2:]


def test_a_jpeg_with_broken_metadata_is_read():
    assert decode(io.BytesIO(with_segment(0xE1, broken_exif(6))), "x").size == (16, 24), "turned all the same"
    for marker, content in (
        (0xE1, b"Exif\0\0II*\0\xff\xff"),
        (0xE1, b"Exif\0\0"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    ):
        assert decode(io.BytesIO(with_segment(marker, content)), "x").size == (24, 16)


@pytest.mark.parametrize("kind", ["tEXt", "iTXt", "zTXt", "iCCP", "pHYs", "eXIf"])
def test_a_png_with_broken_metadata_is_read(kind):
    large = b"key\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))
    for extra in (
        chunk(kind.encode(), b"damaged", checksum=1),
        chunk(kind.encode(), large),
        chunk(kind.encode(), b"\0"),
    ):
        whole = png(8, 2, RGB.astype(np.int64))
        assert np.array_equal(pixels(io.BytesIO(whole[:33] + extra + whole[33:])), RGB)


def test_damaged_pixels_are_still_rejected():
    whole = bytearray(png(8, 2, RGB.astype(np.int64), (b"tEXt", b"a\0b")))
    whole[whole.index(b"IDAT") + 8] ^= 255
    with pytest.raises(DatasetError, match=r"^x: "):
        decode(io.BytesIO(whole), "x")


def test_a_huge_image_is_rejected_with_its_size_and_a_remedy():
    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(
        DatasetError, match=r"^x: it has 400,000,000 pixels, more than the limit of 178,956,970: save it at a smaller"
    ):
        decode(io.BytesIO(bomb), "x")


def test_inverted_and_plain_cmyk_give_one_colour():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    jpeg, tiff = (pixels(stored(image, form)) for form in ("JPEG", "TIFF"))
    assert tiff[0, 0].tolist() == [255, 0, 0]
    assert np.abs(jpeg.astype(int) - tiff).max() < 8
