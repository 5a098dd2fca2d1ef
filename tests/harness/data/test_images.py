"""Images decoded once: whole, mapped, shared, and built again when damaged."""

import errno
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from harness.data import datasets
from harness.data.cache import CacheError
from harness.data.datasets import DatasetError
from harness.data.images import contents, disk_bytes, open_images
from tests.harness.data.datasets.sources import folder as folders
from tests.harness.pictures import Pictures, noise


def test_images_are_decoded_once_and_mapped(tmp_path):
    pictures, seen = Pictures(), []
    images = open_images(pictures.dataset, 8, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 100) for done in range(1, 101)]
    again = open_images(pictures.dataset, 8, tmp_path)
    assert len(set(pictures.read_keys)) == 100
    assert len(pictures.read_keys) <= 164, "once each, and 64 of them to foretell the size of the file"
    assert len(images) == len(again) == 100
    assert isinstance(again.pixels, np.memmap)
    assert not again.pixels.flags.writeable


def test_images_of_one_size_make_a_tensor_and_of_several_a_list(tmp_path):
    sizes = [(10, 10), (12, 10), (10, 30), (10, 100)]
    same = open_images(Pictures(size=(12, 10)).dataset, 8, tmp_path)
    batch = same.batch(torch.tensor([3, 99]))
    assert isinstance(batch, torch.Tensor)
    assert (batch.dtype, batch.shape) == (torch.uint8, (2, 3, 8, 9))
    assert batch[:, :, 0, 0].tolist() == [[3, 6, 7], [99, 198, 7]]
    assert torch.equal(batch, torch.stack(list(same.batch(np.array([3, 99])))))
    dataset = replace(Pictures(count=4).dataset, read=lambda i: Image.new("RGB", sizes[i], (i, 2 * i, 7)))
    several = open_images(dataset, 8, tmp_path)
    assert several.array is None
    batch = several.batch(np.array([3, 0, 2, 3]))
    assert [tuple(image.shape) for image in batch] == [(3, 32, 8), (3, 8, 8), (3, 24, 8), (3, 32, 8)]
    assert [image[:, 0, 0].tolist() for image in batch] == [[3, 6, 7], [0, 0, 7], [2, 4, 7], [3, 6, 7]]
    assert all(image.dtype == torch.uint8 and image.is_contiguous() for image in batch)


def test_the_size_is_estimated_and_announced_before_decoding(tmp_path):
    pictures, said = Pictures(size=(20, 10)), []
    assert disk_bytes(pictures.dataset, 8) == 100 * 3 * 8 * 16
    images = open_images(pictures.dataset, 8, tmp_path, announce=lambda sentence: said.append(sentence))
    assert images.path.stat().st_size == pytest.approx(100 * 3 * 8 * 16, rel=0.05)
    open_images(pictures.dataset, 8, tmp_path, announce=lambda sentence: said.append(sentence))
    assert len(said) == 1
    assert said[0].startswith(f"toy at 8 px takes about 0.00 GB and {tmp_path} has ")
    assert said[0].endswith("GB left: decoding 100 images")
    assert disk_bytes(Pictures(broken=range(100)).dataset, 8) == 100 * 3 * 8 * 8


def test_each_size_and_source_has_its_own_file(tmp_path):
    paths = {open_images(Pictures().dataset, side, tmp_path).path for side in (8, 9)}
    paths.add(open_images(Pictures(stamp="2").dataset, 8, tmp_path).path)
    assert len(paths) == len(list(tmp_path.glob("images-toy-*.bin"))) == 3


def test_labels_and_splits_do_not_change_the_file(tmp_path):
    pictures = Pictures()
    open_images(pictures.dataset, 8, tmp_path)
    pictures.dataset.split[50:] = "test"
    read = len(pictures.read_keys)
    open_images(pictures.dataset, 8, tmp_path)
    assert len(pictures.read_keys) == read


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "short of a byte", "overwritten", "of another layout"])
def test_a_damaged_file_is_built_again(tmp_path, damage):
    pictures = Pictures()
    path = open_images(pictures.dataset, 8, tmp_path).path
    whole, read = path.read_bytes(), len(pictures.read_keys)
    damaged = {
        "cut": whole[: len(whole) // 2],
        "cut to nothing": b"",
        "short of a byte": whole[1:],
        "overwritten": bytes(600) + whole[600:],
        "of another layout": whole[:-24] + b"images-0" + whole[-16:],
    }
    path.write_bytes(damaged[damage])
    again = open_images(pictures.dataset, 8, tmp_path)
    assert again.array is not None
    assert again.array[7, :, 0, 0].tolist() == [7, 14, 7]
    assert len(pictures.read_keys) == 2 * read
    assert path.read_bytes() == whole


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    pictures = Pictures()

    def full(image, side_px):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("harness.data.images.resized", full)
        with pytest.raises(CacheError, match="No space left on device; free some space"):
            open_images(pictures.dataset, 8, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert len(open_images(pictures.dataset, 8, tmp_path)) == 100


def test_processes_that_start_together_build_once(tmp_path):
    pictures, opened = Pictures(), []
    threads = [
        threading.Thread(target=lambda: opened.append(open_images(pictures.dataset, 8, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len(pictures.read_keys) <= 164


def test_unreadable_images_are_all_named_and_nothing_is_kept(tmp_path):
    with pytest.raises(
        DatasetError, match=r"(?s)^toy: 3 images cannot be read:\s+5.png: trunc.*\s+50.png.*\s+99.png"
    ):
        open_images(Pictures(broken=(5, 50, 99)).dataset, 8, tmp_path)
    assert not list(tmp_path.glob("*.bin"))


def test_of_many_unreadable_images_some_are_named(tmp_path):
    with pytest.raises(DatasetError) as caught:
        open_images(Pictures(broken=range(100)).dataset, 8, tmp_path)
    said = str(caught.value).splitlines()
    assert len(said) == 22
    assert said[-1] == "  and 80 more; `metrix-bench doctor toy` names them all"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot write the cache in .*file/cache: Not a directory"):
        open_images(Pictures().dataset, 8, tmp_path / "file" / "cache")


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    pictures = Pictures()
    with pytest.raises(CacheError, match=r"toy at 256 px takes about 0.02 GB and .* has 0.00 GB left: free some"):
        open_images(pictures.dataset, 256, tmp_path)
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("size", [(64, 64), (80, 64), (64, 101), (20, 31), (32, 32), (31, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_stored_images_are_torchvisions_resize(tmp_path, size, mode):
    width, height = size
    image = Image.fromarray(noise(1, max(size))[0, :, :height, :width].permute(1, 2, 0).contiguous().numpy())
    dataset = replace(Pictures(count=1).dataset, read=lambda _: image.convert(mode))
    stored = open_images(dataset, 32, tmp_path).batch(np.array([0]))[0]
    expected = vision.pil_to_tensor(v2.Resize(32)(image.convert(mode)).convert("RGB"))
    assert torch.equal(stored, expected)


def test_a_very_long_image_is_cropped_to_its_middle(tmp_path):
    strip = np.arange(1000, dtype=np.uint32)[:, None].repeat(7, 1)  # 7 px wide, rows counted from the top
    image = Image.fromarray((strip // 4).astype(np.uint8))
    dataset = replace(Pictures(count=1).dataset, read=lambda _: image)
    stored = open_images(dataset, 14, tmp_path).batch(np.array([0]))[0]
    assert stored.shape == (3, 56, 14)
    rows = 4 * stored[0, :, 0].double()
    assert (rows[0].item(), rows[-1].item()) == (pytest.approx(486, abs=6), pytest.approx(514, abs=6))


def test_a_replaced_file_of_the_same_size_and_time_is_decoded_again(tmp_path):
    folder = folders.write(tmp_path / "data")
    file = folder / "ant" / "1.png"
    before = datasets.load("folder", folder)
    first = open_images(before, 8, tmp_path)
    times = file.stat()
    Image.new("RGB", (12, 12), (9, 8, 7)).save(file)
    file.write_bytes(file.read_bytes().ljust(times.st_size, b"\0"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = datasets.load("folder", folder)
    assert before.source_stamp == after.source_stamp, "sizes and times are the same"
    second = open_images(after, 8, tmp_path)
    assert first.path != second.path
    assert second.array is not None
    assert second.array[list(after.keys).index("ant/1.png"), :, 0, 0].tolist() == [9, 8, 7]


def test_files_decoded_every_time_are_checked_beforehand(tmp_path):
    pictures = Pictures(broken=(5, 50))
    with pytest.raises(
        DatasetError, match=r"^toy: 2 images cannot be read:\n  5.png: truncated\n  50.png: truncated$"
    ):
        contents(pictures.dataset, tmp_path)
    pictures.broken = ()
    assert contents(pictures.dataset, tmp_path) == "1"
    pictures.read_keys.clear()
    assert contents(pictures.dataset, tmp_path) == "1"
    assert pictures.read_keys == [], "once for each stamp"
