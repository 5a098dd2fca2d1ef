"""Decoded images, batches, and crops that equal torchvision's."""

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from harness.cache import CacheError
from harness.datasets import Dataset, DatasetError
from harness.loading import Augmentation, batches, open_images, random_crops, resize_each, resize_together

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def noise(count, side, seed=0):
    """(count, 3, side, side) uint8 with structure at several scales, like photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 8 + 1, side // 8 + 1, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (smooth + 30 * torch.randn(count, 3, side, side, generator=generator)).clamp(0, 255).to(torch.uint8)


class Pictures:
    """A dataset of n images whose readings are counted; some cannot be read."""

    def __init__(self, count=100, size=(12, 10), broken=(), stamp="1"):
        self.read_keys, self.broken, self.size = [], broken, size
        keys = tuple(f"{i}.png" for i in range(count))
        self.dataset = Dataset(
            name="toy",
            keys=keys,
            labels=np.arange(count) // 2,
            class_names=tuple(map(str, range(count // 2))),
            split=np.array(["train"] * count),
            read=self.read,
            source_stamp=stamp,
        )

    def read(self, i):
        self.read_keys.append(i)
        if i in self.broken:
            raise DatasetError(f"{i}.png: truncated")
        return Image.new("RGB", self.size, (i, 2 * i, 7))


def test_images_are_decoded_once_and_mapped(tmp_path):
    pictures, seen = Pictures(), []
    images = open_images(pictures.dataset, 8, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert (len(images), images.side_px) == (100, 8)
    again = open_images(pictures.dataset, 8, tmp_path)
    assert len(pictures.read_keys) == 100
    assert isinstance(again.array, np.memmap)
    assert not again.array.flags.writeable
    batch = again.batch(torch.tensor([3, 99]))
    assert (batch.dtype, batch.shape) == (torch.uint8, (2, 3, 8, 8))
    assert batch[:, :, 0, 0].tolist() == [[3, 6, 7], [99, 198, 7]]
    assert torch.equal(batch, again.batch(np.array([3, 99])))


def test_sizes_and_sources_have_files_of_their_own(tmp_path):
    paths = {open_images(Pictures().dataset, side, tmp_path).path for side in (8, 9)}
    paths.add(open_images(Pictures(stamp="2").dataset, 8, tmp_path).path)
    assert len(paths) == len(list(tmp_path.glob("images-toy-*.npy"))) == 3


def test_labels_and_splits_do_not_decide_the_file(tmp_path):
    pictures = Pictures()
    open_images(pictures.dataset, 8, tmp_path)
    pictures.dataset.split[50:] = "test"
    open_images(pictures.dataset, 8, tmp_path)
    assert len(pictures.read_keys) == 100


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "short of its sums", "overwritten"])
def test_a_damaged_file_is_built_again(tmp_path, damage):
    pictures = Pictures()
    path = open_images(pictures.dataset, 8, tmp_path).path
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "cut to nothing": b"",
        "short of its sums": whole[:-4],
        "overwritten": whole[:-1000] + bytes(600) + whole[-400:],
    }
    path.write_bytes(damaged[damage])
    assert open_images(pictures.dataset, 8, tmp_path).array[7, :, 0, 0].tolist() == [7, 14, 7]
    assert len(pictures.read_keys) == 200
    assert path.read_bytes() == whole


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
    assert len(pictures.read_keys) == 100


def test_unreadable_images_are_all_named_and_nothing_is_kept(tmp_path):
    with pytest.raises(
        DatasetError, match=r"(?s)^toy: 3 images cannot be read:\s+5.png: trunc.*\s+50.png.*\s+99.png"
    ):
        open_images(Pictures(broken=(5, 50, 99)).dataset, 8, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot write the cache in .*file/cache: Not a directory"):
        open_images(Pictures().dataset, 8, tmp_path / "file" / "cache")


def test_a_disk_that_is_too_small_is_named_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    pictures = Pictures()
    with pytest.raises(CacheError, match=r"toy at 256 px takes 0.02 GB and .* has 0.00 GB left"):
        open_images(pictures.dataset, 256, tmp_path)
    assert pictures.read_keys == []


@pytest.mark.parametrize("size", [(64, 64), (80, 64), (64, 101), (20, 31), (32, 32), (7, 900)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_stored_squares_are_torchvisions_resize_and_centre_crop(tmp_path, size, mode):
    width, height = size
    pixels = noise(1, max(size))[0, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels).convert(mode)
    dataset = replace(Pictures(count=1).dataset, read=lambda _: image)
    stored = open_images(dataset, 32, tmp_path).array[0].astype(float)
    expected = vision.center_crop(vision.resize(image, 32), 32).convert("RGB")
    difference = np.abs(stored - np.asarray(expected).transpose(2, 0, 1)).mean()
    assert difference < 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "side_px", "share"), [(105, 32, 1), (105, 32, 0.875), (32, 32, 1), (20, 32, 0.9)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(side, side_px, share, interpolation):
    images = noise(3, side)
    augmentation = Augmentation(side_px, **PLAIN, interpolation=interpolation, centre_share=share)
    resize = v2.Resize(round(side_px / share), vision.InterpolationMode(interpolation))
    crop = v2.CenterCrop(side_px)
    pil = [crop(resize(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    expected = torch.stack([vision.pil_to_tensor(image) for image in pil]).float() / 255
    result = augmentation.evaluate(images)
    assert result.dtype == torch.float32
    assert (result - expected).abs().mean() < 1 / 255


@pytest.mark.parametrize("resize", [resize_each, resize_together])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "side_px"), [(32, 32), (64, 24), (24, 40)])
def test_training_crops_are_torchvisions(side, side_px, interpolation, resize):
    images = noise(40, side)
    uniform = torch.rand(22, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    crops = random_crops(uniform, side, (0.08, 1.0), (3 / 4, 4 / 3))
    mirrored = torch.arange(40) % 2 == 1
    result = torch.stack(list(resize(images, crops, mirrored, side_px, interpolation))).float().clamp(0, 255)
    for i, crop in enumerate(crops.T.tolist()):
        pil = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        pil = vision.resized_crop(pil, *crop, [side_px, side_px], vision.InterpolationMode(interpolation))
        expected = vision.pil_to_tensor(vision.hflip(pil) if mirrored[i] else pil).float()
        assert (result[i] - expected).abs().mean() < 1, f"crop {crop}"


def test_crops_are_distributed_as_torchvisions():
    uniform = torch.rand(22, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = random_crops(uniform, 64, (0.08, 1.0), (3 / 4, 4 / 3)).double()
    torch.manual_seed(0)
    draw = v2.RandomResizedCrop(64).make_params
    theirs = [draw([Image.new("L", (64, 64))]) for _ in range(4000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]).T.double()
    for statistic in (lambda x: x.mean(1), lambda x: x.std(1), lambda x: x.quantile(0.1, 1)):
        assert (statistic(ours) - statistic(theirs)).abs().max() < 1.5  # pixels; the error of a mean is 0.35
    top, left, height, width = ours
    assert min(top.min(), left.min()) == 0
    assert max((top + height).max(), (left + width).max()) == 64


def test_a_crop_that_never_fits_is_the_largest_central_one():
    uniform = torch.full((22, 1), 0.999, dtype=torch.float64)
    assert random_crops(uniform, 60, (1.0, 1.0), (2.0, 3.0)).T.tolist() == [[15, 0, 30, 60]]
    assert random_crops(uniform, 60, (1.0, 1.0), (0.25, 0.5)).T.tolist() == [[0, 15, 60, 30]]


@pytest.mark.parametrize("side", [32, 64])
def test_training_depends_on_the_generator_alone(side):
    images = noise(8, side)
    augmentation = Augmentation(32, **PLAIN)
    first, again = (augmentation.train(images, torch.Generator().manual_seed(3)) for _ in range(2))
    other = augmentation.train(images, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert first.shape == (8, 3, 32, 32)
    assert not torch.equal(first, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation.train(images, torch.Generator().manual_seed(3)), first)


@pytest.mark.parametrize("side", [32, 64])
def test_half_are_mirrored_unless_flip_is_off(side):
    images = torch.zeros(400, 3, side, side, dtype=torch.uint8)
    images[:, :, :, : side // 2] = 200  # the left half is bright
    for flip, low, high in ((True, 170, 230), (False, 0, 0)):
        augmentation = Augmentation(side, **PLAIN, crop_scale=(1, 1), crop_ratio=(1, 1), flip=flip)
        out = augmentation.train(images, torch.Generator().manual_seed(0))
        mirrored = (out[:, 0, 0, -1] > out[:, 0, 0, 0]).sum().item()
        assert low <= mirrored <= high
    assert torch.allclose(out, images / 255, atol=1e-6), "the whole image at its own size is the image"


def test_pixels_are_normalised_per_channel():
    images = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)  # 51 / 255 = 0.2
    augmentation = Augmentation(8, mean=(0.1, 0.2, 0.4), std=(0.5, 1.0, 0.1))
    for out in (augmentation.evaluate(images), augmentation.train(images, torch.Generator())):
        assert torch.allclose(out[0, :, 3, 3], torch.tensor([0.2, 0.0, -2.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interpolation": "nearest"}, "no interpolation named 'nearest'; there are: bicubic, bilinear"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale = \(0.5, 1.5\), expected"),
        ({"crop_ratio": (2, 1)}, r"crop_ratio = \(2, 1\), expected"),
        ({"centre_share": 0}, "centre_share = 0, expected"),
    ],
)
def test_impossible_augmentations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(32, **PLAIN, **wrong)


def test_balanced_batches_hold_equal_classes():
    labels = np.repeat(np.arange(12), [3, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 32])  # 100 images
    epoch = batches(labels, batch_size=20, sampler="balanced", examples_per_class=5, seed_of_epoch=0)
    assert len(epoch) == 5
    for batch in epoch:
        assert set(Counter(labels[batch]).values()) == {5}, "four classes with five images each"
        repeated = [labels[i] for i, times in Counter(batch.tolist()).items() if times > 1]
        assert set(repeated) <= {0}, "only the class of three images repeats one"
    times = Counter(labels[np.concatenate(epoch)[::5]])
    assert sorted(times.values()) == [1] * 4 + [2] * 8, "20 places for 12 classes"


def test_a_class_shows_all_images_before_one_comes_again():
    labels = np.repeat([0, 1], [8, 32])
    shown = np.concatenate(batches(labels, batch_size=4, examples_per_class=2))  # 10 batches of both classes
    first = [i for i in shown if labels[i] == 0]
    assert sorted(first[:8]) == sorted(first[8:16]) == list(range(8))
    assert len({i for i in shown if labels[i] == 1}) == 20


def test_shuffled_batches_show_every_image_once():
    labels = np.arange(103)
    epoch = batches(labels, batch_size=10, sampler="shuffle", examples_per_class=5, seed_of_epoch=7)
    assert [len(batch) for batch in epoch] == [10] * 10
    assert len(set(np.concatenate(epoch))) == 100


@pytest.mark.parametrize("sampler", ["balanced", "shuffle"])
def test_batches_depend_on_the_seed_alone(sampler):
    labels = np.repeat(np.arange(20), 6)
    draw = [np.concatenate(batches(labels, batch_size=20, sampler=sampler, seed_of_epoch=s)) for s in (1, 1, 2)]
    assert np.array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])


def test_images_of_a_class_are_drawn_evenly():
    labels = np.repeat(np.arange(10), 10)
    drawn = Counter(
        int(i) for s in range(200) for i in np.concatenate(batches(labels, batch_size=50, seed_of_epoch=s))
    )
    assert set(drawn.values()) == {200}  # two batches of 50 show each of the 100 images once


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 101}, "batch_size = 101, expected 1 to 100"),
        ({"batch_size": 0}, "batch_size = 0, expected 1 to 100"),
        ({"batch_size": 21}, "batch_size = 21 is no multiple of examples_per_class = 5"),
        ({"batch_size": 60}, "batch_size = 60 with 5 examples a class takes 12 classes; there are 10"),
        ({"batch_size": 20, "sampler": "ballanced"}, "no sampler named 'ballanced'; did you mean 'balanced'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        batches(np.repeat(np.arange(10), 10), **wrong)
