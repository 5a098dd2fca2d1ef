"""Batches, and crops that equal torchvision's."""

from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from harness import config
from harness.data import loading
from harness.data.datasets import DatasetError
from harness.data.datasets._files import Row, listed
from harness.data.images import Originals, open_images
from harness.data.loading import Augmentation, batches, framed, random_crops, resize_each, resize_together
from harness.training.embedder import Embedder
from tests.harness.pictures import Pictures, noise, to_image

PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


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
    crops = random_crops(uniform, side, side, (0.08, 1.0), (3 / 4, 4 / 3))
    mirrored = torch.arange(40) % 2 == 1
    result = torch.stack(list(resize(images, crops, mirrored, side_px, interpolation))).float().clamp(0, 255)
    for i, (top, left, height, width) in enumerate(crops.T.tolist()):
        pil: Any = Image.fromarray(images[i].permute(1, 2, 0).numpy())  # torchvision's types have tensors only
        pil = vision.resized_crop(
            pil, top, left, height, width, [side_px, side_px], vision.InterpolationMode(interpolation)
        )
        expected = vision.pil_to_tensor(vision.hflip(pil) if mirrored[i] else pil).float()
        assert (result[i] - expected).abs().mean() < 1, f"crop {i}"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_of_several_sizes_are_cropped_like_each_alone(interpolation):
    images = [
        noise(1, 90, seed)[0, :, :h, :w] for seed, (h, w) in enumerate([(50, 70), (90, 50), (50, 50), (51, 80)])
    ]
    augmentation = Augmentation(32, **PLAIN, interpolation=interpolation)
    together = augmentation.train(images, torch.Generator().manual_seed(0))
    uniform = torch.rand(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    on_device = []
    for i, image in enumerate(images):
        _, height, width = image.shape
        crop = random_crops(uniform[:22, i : i + 1], height, width, (0.08, 1.0), (3 / 4, 4 / 3))
        mirrored = uniform[22, i : i + 1] < 0.5
        alone = next(resize_each([image], crop, mirrored, 32, interpolation))
        assert torch.equal(together[i], alone / 255)
        on_device.append((crop, mirrored, alone))
    crops, mirrored, alone = (
        torch.cat(part, -1) if part[0].dim() < 3 else torch.stack(part) for part in zip(*on_device, strict=True)
    )
    batched = resize_together(framed(images), crops, mirrored, 32, interpolation)
    assert (batched - alone.float()).abs().mean() < 1
    test = augmentation.evaluate(images)
    for i, image in enumerate(images):
        assert torch.equal(test[i], augmentation.evaluate(image.unsqueeze(0))[0])


@pytest.fixture(scope="module")
def photographs():
    """Pictures of several sizes, portrait, landscape and grey, with the detail of photographs."""
    sizes = [(96, 64), (64, 96), (64, 64), (70, 64), (64, 81), (64, 130)]
    pixels = [noise(1, 130, seed)[0, :, :h, :w] for seed, (w, h) in enumerate(sizes)]
    images = [to_image(p) for p in pixels]
    images[2] = images[2].convert("L")
    return Pictures(count=6, images=images).dataset


@pytest.mark.parametrize("side_px", [56, 48])
def test_both_paths_give_the_same_batches(photographs, tmp_path, side_px):
    """Decoded images of 64 px, from files of 64 px or of more: their crops are torchvision's of the files."""
    cached, files, every = open_images(photographs, 64, tmp_path), Originals(photographs), np.arange(6)
    augmentation = Augmentation(side_px, **PLAIN, centre_share=56 / 64)
    for step in range(3):
        ours, theirs = (
            augmentation.train(source.batch(every), torch.Generator().manual_seed(step)) for source in (cached, files)
        )
        assert ours.shape == (6, 3, side_px, side_px)
        assert (ours - theirs).abs().mean() < 1 / 255
    ours, theirs = (augmentation.evaluate(source.batch(every)) for source in (cached, files))
    assert (ours - theirs).abs().mean() < 1 / 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_both_paths_give_the_same_embeddings(tmp_path, interpolation):
    """Also where the weights want a cubic filter, which the decoded images were not made with."""
    photographs = Pictures(count=6, images=[to_image(p, (90 + i, 140)) for i, p in enumerate(noise(6, 140))]).dataset
    network = Embedder("test_resnet", dim=16, pretrained=False, generator=torch.Generator().manual_seed(0)).eval()
    augmentation = Augmentation(56, network.mean, network.std, interpolation, centre_share=56 / 64)
    with torch.inference_mode():
        cached, files = (
            network(augmentation.evaluate(source.batch(np.arange(6))))
            for source in (open_images(photographs, 64, tmp_path), Originals(photographs))
        )
    assert (cached * files).sum(1).min() > 0.999


def test_the_classical_path_is_torchvisions(photographs):
    files = Originals(photographs)
    out = Augmentation(48, **PLAIN, centre_share=48 / 64).evaluate(files.batch(np.array([5, 2])))
    transform = v2.Compose([v2.Resize(64), v2.CenterCrop(48), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    expected = torch.stack([transform(photographs.read(i).convert("RGB")) for i in (5, 2)])
    assert torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "stored_px", "share"),
    [
        ({}, 256, 0.875),
        ({"cache_side_px": 512}, 512, 0.875),
        ({"cache_side_px": 240}, 240, 224 / 240),
        ({"side_px": 32}, 32, 1),
        ({"side_px": 32, "cache_side_px": 32}, 32, 1),
        ({"side_px": 128}, 146, 128 / 146),
    ],
)
def test_settings_of_the_cache_and_of_the_test_crop(settings, stored_px, share):
    images = config.Images(**settings)
    assert images.stored_px == stored_px
    assert images.centre_share == pytest.approx(share)


def test_crops_are_distributed_as_torchvisions():
    uniform = torch.rand(22, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = random_crops(uniform, 64, 64, (0.08, 1.0), (3 / 4, 4 / 3)).double()
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
    assert random_crops(uniform, 60, 60, (1.0, 1.0), (2.0, 3.0)).T.tolist() == [[15, 0, 30, 60]]
    assert random_crops(uniform, 60, 60, (1.0, 1.0), (0.25, 0.5)).T.tolist() == [[0, 15, 60, 30]]


@pytest.mark.parametrize("side", [32, 64])
def test_training_depends_only_on_the_generator(side):
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
def test_impossible_augmentations_are_rejected(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(32, **PLAIN, **wrong)


def test_balanced_batches_contain_equal_classes():
    labels = np.repeat(np.arange(12), [3, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 32])  # 100 images
    epoch = batches(labels, batch_size=20, sampler="balanced", examples_per_class=5, seed_of_epoch=0)
    assert len(epoch) == 5
    for batch in epoch:
        assert set(Counter(labels[batch]).values()) == {5}, "four classes with five images each"
        repeated = [labels[i] for i, times in Counter(batch.tolist()).items() if times > 1]
        assert set(repeated) <= {0}, "only the class of three images repeats one"
    times = Counter(labels[np.concatenate(epoch)[::5]])
    assert sorted(times.values()) == [1] * 4 + [2] * 8, "20 places for 12 classes"


def test_a_class_uses_all_images_before_it_repeats_one():
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
def test_batches_depend_only_on_the_seed(sampler):
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
        ({"batch_size": 21}, "batch_size = 21 is not a multiple of examples_per_class = 5"),
        ({"batch_size": 60}, "batch_size = 60 with 5 examples per class needs 12 classes; there are 10"),
        ({"batch_size": 20, "sampler": "ballanced"}, "no sampler named 'ballanced'; did you mean 'balanced'"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(wrong, message):
    with pytest.raises(ValueError, match=message):
        batches(np.repeat(np.arange(10), 10), **wrong)


DEPRECATED = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # by torchvision


@pytest.fixture
def files(tmp_path):
    """Image files: JPEG in colour and in grey, and others that only Pillow shows as they are meant."""
    pictures = [to_image(pixels, (64 + 3 * i, 70)) for i, pixels in enumerate(noise(5, 90))]
    pictures[1] = pictures[1].convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures[0].save(tmp_path / "0.jpg", quality=95)
    pictures[1].save(tmp_path / "1.jpg", quality=95)
    pictures[2].save(tmp_path / "2.png")
    pictures[3].save(tmp_path / "3.jpg", quality=95, exif=turned)
    pictures[4].convert("CMYK").save(tmp_path / "4.jpg", quality=95)
    return listed("files", tmp_path, [Row(path.name, "any", "train") for path in sorted(tmp_path.iterdir())])


@DEPRECATED
def test_a_device_decodes_plain_jpegs_and_pillow_the_others(files, monkeypatch):
    """The processor stands in for the GPU."""
    decode, sent = loading._decode_jpegs, []

    def counted(these, device):
        sent.append(len(these))
        return decode(these, device)

    monkeypatch.setattr(loading, "_decode_jpegs", counted)
    pillow, device = (Originals(files, decoder=name).batch(np.arange(5)) for name in ("pillow", "torchvision-gpu"))
    augmentation = Augmentation(48, **PLAIN, centre_share=48 / 64)
    images = cast(list[Tensor], augmentation.load(device))
    assert sent == [2]
    for place, image in enumerate(images):
        expected = vision.pil_to_tensor(pillow.read(place)).float()
        assert image.shape == expected.shape
        assert (image.float() - expected).abs().mean() < (1.0 if place < 2 else 1e-9)
    assert (augmentation.evaluate(images) - augmentation.evaluate(pillow)).abs().mean() < 1 / 255
    crops = (augmentation.train(batch, torch.Generator().manual_seed(0)) for batch in (device, pillow))
    assert torch.sub(*crops).abs().mean() < 1.5 / 255


@DEPRECATED
def test_a_file_that_a_device_cannot_decode_is_decoded_by_pillow(files, monkeypatch):
    decode, refused = loading._decode_jpegs, Path(files.files[0]).read_bytes()

    def failing(these, device):
        if refused in these:
            raise RuntimeError("nvJPEG: status 5")
        return decode(these, device)

    monkeypatch.setattr(loading, "_decode_jpegs", failing)
    batch = Originals(files, decoder="torchvision-gpu").batch(np.arange(5))
    images = cast(list[Tensor], Augmentation(48, **PLAIN).load(batch))
    assert torch.equal(images[0], vision.pil_to_tensor(batch.read(0)))
    assert images[1].shape == (3, 70, 67)
    Path(files.files[0]).write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"^0\.jpg: "):
        Augmentation(48, **PLAIN).load(batch)


@DEPRECATED
def test_whether_a_machine_can_decode_on_its_gpu(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert loading.gpu_decoder_problem(cpu) == "it needs an NVIDIA GPU, and the trial runs on cpu"
    decode = loading._decode_jpegs
    monkeypatch.setattr(loading, "_decode_jpegs", lambda these, device: decode(these, cpu))
    assert loading.gpu_decoder_problem(cuda) is None

    def lacking(these, device):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG\nmore")

    monkeypatch.setattr(loading, "_decode_jpegs", lacking)
    sentence = "torchvision cannot decode on this GPU (decode_jpegs_cuda: torchvision not compiled with nvJPEG)"
    assert loading.gpu_decoder_problem(cuda) == sentence
