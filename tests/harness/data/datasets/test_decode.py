"""Any image file becomes 8-bit grey or RGB, upright and on white; a damaged one is named."""

import io

import numpy as np
import pytest
from PIL import Image

from harness.data.datasets import DatasetError
from harness.data.datasets._files import decode


def stored(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def first_pixel(image, **options):
    decoded = decode(stored(image, **options), "x")
    return decoded.mode, decoded.getpixel((0, 0))


def test_grey_rgb_and_one_bit():
    assert first_pixel(Image.new("L", (2, 2), 7)) == ("L", 7)
    assert first_pixel(Image.new("RGB", (2, 2), (1, 2, 3))) == ("RGB", (1, 2, 3))
    assert first_pixel(Image.new("1", (2, 2), 1)) == ("L", 255)


def test_palette_and_transparency_are_blended_with_white():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert first_pixel(palette) == ("RGB", (10, 20, 30))
    assert first_pixel(palette, transparency=1) == ("RGB", (255, 255, 255))
    assert first_pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == ("RGB", (255, 255, 255))
    assert first_pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 255))) == ("RGB", (255, 0, 0))
    assert first_pixel(Image.new("LA", (2, 2), (9, 255))) == ("RGB", (9, 9, 9))


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128, 0), (129, 1), (32768, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_not_cut(value, expected):
    image = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    assert first_pixel(image) == ("L", expected)
    assert first_pixel(image, form="TIFF") == ("L", expected)


def test_cmyk_is_converted():
    mode, pixel = first_pixel(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form="JPEG", quality=95)
    assert mode == "RGB"
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    assert red > 240
    assert max(green, blue) < 15


def test_exif_orientation_is_applied():
    upright = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    assert np.asarray(decode(stored(upright, exif=exif), "x")).tolist() == [[3, 0], [4, 1], [5, 2]]


def test_damaged_files_and_pixels_without_a_range_are_named():
    whole = stored(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG").getvalue()
    for content in (whole[: len(whole) // 2], b"", b"no image", whole[:2]):
        with pytest.raises(DatasetError, match=r"^birds/3.jpg: "):
            decode(io.BytesIO(content), "birds/3.jpg")
    with pytest.raises(DatasetError, match="floating-point pixels have no known range"):
        decode(stored(Image.new("F", (2, 2), 0.5), "TIFF"), "x")
    with pytest.raises(DatasetError, match=r"a.png: FileNotFoundError"):
        decode("nowhere/a.png", "a.png")
