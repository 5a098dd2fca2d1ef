"""What a trial's network sees: the features are those of its backbone on the test crops, shared by trials."""

import numpy as np
import pytest
import torch

from harness.config import Backbone
from harness.data.images import Images, images_path, open_images
from harness.training.backbones import Unavailable
from harness.training.features import features_path
from harness.training.network import build_embedder
from harness.training.pictures import Sources, features_of, open_dataset, pictures_of, same_pictures
from tests.harness.pictures import class_folders


def computed(trial, data, cache=None, **where):
    sources = Sources("", data, cache, **where)
    return features_of(trial, open_dataset(trial.dataset, data, cache), sources)


@pytest.mark.parametrize(
    ("network", "pooling", "path"),
    [
        ("test_resnet", "avg", "cache"),
        ("test_resnet", "max", "classical"),
        ("test_efficientnet", "avg+max", "cache"),
        ("test_vit", "token", "cache"),
    ],
)
def test_they_are_the_pooled_features_of_the_test_crops(frozen, data, tmp_path, network, pooling, path):
    """The crop of 64 px is the whole image, normalised by mean and deviation, on both paths."""
    trial = frozen(network=network, model={"pooling": pooling}, images={"path": path})
    found = computed(trial, data)
    embedder = build_embedder(trial).eval()
    images = open_images(open_dataset(trial.dataset, data), 64, tmp_path / "decoded").array
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (embedder.mean, embedder.std))
    with torch.inference_mode():
        expected = embedder.pooled((torch.tensor(images) / 255 - mean) / std).numpy()
    assert found.array.shape == (60, 1, embedder.width)
    assert expected.std() > 1e-3
    # The classical path resizes with torchvision, which rounds pixels in another way.
    np.testing.assert_allclose(found.array[:, 0], expected, atol=1e-5 if path == "cache" else 0.05 * expected.std())
    assert found.about["weights_digest"] == embedder.weights_digest
    assert found.about["parameters"] == sum(p.numel() for p in embedder.backbone.parameters())


def test_the_poolings_of_a_map_differ(frozen, data):
    poolings = {p: computed(frozen(model={"pooling": p}), data).array for p in ("avg", "max", "avg+max")}
    np.testing.assert_allclose(poolings["avg+max"], poolings["avg"] + poolings["max"], rtol=1e-5)
    assert (poolings["max"] > poolings["avg"]).mean() > 0.5


def test_a_missing_file_of_weights_is_one_sentence(frozen, data):
    trial = frozen().model_copy(update={"backbone": Backbone(name="test_resnet", pretrained="/none.safetensors")})
    with pytest.raises(Unavailable, match=r"the weights /none\.safetensors cannot be read: No such file"):
        computed(trial, data)


def test_the_first_view_is_the_test_crop_and_the_others_differ(frozen, data, tmp_path):
    one = computed(frozen(), data).array
    three = computed(frozen(images={"views": 3, "crop_scale": (0.3, 0.6)}), data)
    np.testing.assert_allclose(three.array[:, 0], one[:, 0], atol=1e-6)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(three.array[:, a] - three.array[:, b]).mean() > 1e-3
    again = computed(frozen(images={"views": 3, "crop_scale": (0.3, 0.6)}), data, tmp_path / "another cache")
    assert again.path != three.path
    assert again.path.read_bytes() == three.path.read_bytes()


def test_trials_that_see_the_same_features_share_them(frozen, make_trial):
    same = [frozen(), frozen("proxy_anchor+feature", 1, lr=0.1), frozen("features"), frozen(model={"pooling": "avg"})]
    other = [frozen("pixels"), frozen(model={"pooling": "max"}), frozen(images={"views": 2})]
    assert len(same_pictures(same)) == 1
    assert len(same_pictures([*same, *other])) == 4
    assert len(same_pictures([make_trial(), make_trial("triplet", 1), make_trial(backbone="test_vit")])) == 1


def test_the_pixel_floor_of_a_frozen_network_sees_images(frozen, data):
    trial = frozen("pixels")
    dataset = open_dataset(trial.dataset, data)
    pictures = pictures_of(trial, dataset, Sources("", data))
    assert isinstance(pictures, Images)
    assert pictures.array is not None
    assert pictures.array.shape == (60, 3, 64, 64)


def test_images_of_many_sizes_have_features(frozen, tmp_path, monkeypatch):
    """Images of many sizes cannot be one array; a batch of them is a list."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, side in enumerate((9, 17, 64, 200)):
        class_folders(tmp_path / "data", classes=2, images=2, first=2 * number, side=side)
    trial = frozen(images={"views": 2})
    dataset = open_dataset(trial.dataset, tmp_path / "data")
    found = features_of(trial, dataset, Sources("", tmp_path / "data"))
    assert found.array.shape == (len(dataset), 2, found.about["width"])
    assert np.isfinite(found.array).all()


def test_the_images_are_those_of_the_dataset(frozen, data, tmp_path):
    trial = frozen()
    dataset = open_dataset(trial.dataset, data)
    found = features_of(trial, dataset, Sources("", data, tmp_path / "cache"))
    assert images_path(dataset, 64, tmp_path / "cache").exists()
    assert found.fingerprint == open_images(dataset, 64, tmp_path / "cache").fingerprint
    assert features_path(trial, dataset, tmp_path / "cache") == found.path
