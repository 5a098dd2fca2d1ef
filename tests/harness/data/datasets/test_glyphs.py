"""The drawn characters: clean, all different, the same each time."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from harness.data import datasets
from harness.data.cache import CacheError
from harness.data.datasets import DatasetError, glyphs


@pytest.fixture(scope="module")
def whole(cache):
    return datasets.load("glyphs", cache=cache)


def test_no_two_images_are_equal_and_none_is_empty(whole):
    images = [whole.read(i) for i in range(len(whole))]
    assert len({image.tobytes() for image in images}) == len(images) > 10_000
    assert all(image.size == (32, 32) and image.getbbox() for image in images)


def test_every_class_has_at_least_eight_drawings_and_half_of_them_are_test(whole):
    sizes = Counter(whole.labels)
    assert min(sizes.values()) >= 8
    in_test = set(whole.labels[whole.split == "test"])
    assert len(in_test) == -(-len(sizes) // 2)
    assert whole.mirrored is False


def test_letters_that_look_alike_are_one_class(whole):
    class_of = {key: whole.class_names[c] for key, c in zip(whole.keys, whole.labels, strict=True)}
    latin, greek, cyrillic = (class_of.get(f"U+{point}/STIXGeneral") for point in ("0041", "0391", "0410"))
    assert latin == "U+0041 LATIN CAPITAL LETTER A"
    assert {greek, cyrillic} <= {latin, None}  # None: the same drawing as the Latin one
    assert class_of["U+0041/DejaVuSans"] == latin
    assert class_of["U+0042/DejaVuSans"] == "U+0042 LATIN CAPITAL LETTER B"


def test_clean_drops_empty_equal_and_ambiguous_drawings(monkeypatch):
    monkeypatch.setattr(glyphs, "LEAST_IMAGES", 2)
    one, two, three, four, five = (Image.new("L", (2, 2), 50 * i) for i in range(1, 6))
    empty = Image.new("L", (2, 2))
    kept = glyphs._clean(
        {
            (65, "DejaVuSans"): one,
            (65, "bold"): two,
            (65, "italic"): two,  # the same drawing again: goes
            (65, "mono"): empty,  # goes
            (913, "DejaVuSans"): one,  # makes 913 the class 65, and is the same drawing again: goes
            (913, "bold"): three,
            (66, "DejaVuSans"): four,
            (66, "bold"): three,  # now in the classes 65 and 66: goes from both
            (66, "italic"): five,
            (67, "DejaVuSans"): Image.new("L", (2, 2), 251),  # a class of one image: goes
        }
    )
    assert kept == {(65, "DejaVuSans"): 65, (65, "bold"): 65, (66, "DejaVuSans"): 66, (66, "italic"): 66}


def test_jitter_depends_only_on_the_key_and_is_moderate():
    square = Image.new("L", (128, 128))
    square.paste(255, (44, 44, 84, 84))
    assert glyphs._jitter(square, "U+0041/a").tobytes() == glyphs._jitter(square, "U+0041/a").tobytes()
    moved = np.stack([np.asarray(glyphs._jitter(square, f"U+0041/{i}"), dtype=float) for i in range(200)])
    ink = moved.sum((1, 2)) / 255  # 100 px at scale 1, 64 to 144 over the range
    assert 63 < ink.min() < 70
    assert 135 < ink.max() < 145
    rows = (moved.sum(2) * (np.arange(32) + 0.5)).sum(1) / moved.sum((1, 2)) - 16  # of the centre of the ink
    assert -3.3 < rows.min() < -2.8
    assert 2.8 < rows.max() < 3.3


def test_the_option_classes_uses_the_first_of_each_split(whole, cache):
    small = datasets.load("glyphs", cache=cache, classes=5)
    for split in ("train", "test"):
        chosen = {small.class_names[c] for c in small.labels[small.split == split]}
        assert len(chosen) == 5
        assert chosen <= {whole.class_names[c] for c in whole.labels[whole.split == split]}
    key = small.keys[7]
    assert small.read(7).tobytes() == whole.read(whole.keys.index(key)).tobytes()
    for wrong in (1, 10_000, "5"):
        with pytest.raises(DatasetError, match=f"classes = {wrong!r}, expected 2 to"):
            datasets.load("glyphs", cache=cache, classes=wrong)


def test_a_truncated_cache_is_drawn_again(whole, cache, monkeypatch):
    file = next(cache.glob("glyphs-*.npz"))
    content = file.read_bytes()
    drawn, stored = [], glyphs._Glyphs(np.zeros((1, 32, 32), np.uint8), [(65, "a")], [65])
    monkeypatch.setattr(glyphs, "_render", lambda _: drawn.append(1) or stored)
    for damaged in (content[: len(content) // 2], b"", content[:9000] + bytes(1000) + content[10_000:]):
        file.write_bytes(damaged)
        glyphs._open(cache)
    assert drawn == [1, 1, 1]
    file.write_bytes(content)
    assert datasets.load("glyphs", cache=cache).pixel_fingerprint == whole.pixel_fingerprint


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        CacheError, match=r"cannot write the cache in .*file/cache: Not a directory; free some space or"
    ):
        datasets.load("glyphs", cache=tmp_path / "file" / "cache")


def test_matplotlib_is_not_imported(cache):
    load = "from harness.data import datasets; datasets.load('glyphs', cache=sys.argv[1])"
    code = f"import sys; {load}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, cache], stdout=subprocess.PIPE, text=True, check=True)
    assert not {"matplotlib", "fontTools", "torch"} & set(done.stdout.split())
