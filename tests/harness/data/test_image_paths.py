"""Whole trials on a benchmark of photographs, from decoded images and from the files."""

import pytest

from harness.config import Arm, Backbone, Choice, Images, Model, Training, Trial
from harness.training.pictures import Sources, prepare_images
from harness.training.trial import run_trial
from tests.harness.data.datasets.sources import cub200


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return cub200.write(tmp_path_factory.mktemp("birds"), 0.005)


def make(arm, path):
    return Trial(
        dataset=Choice(name="cub200", options={"allow_nonstandard": True}),
        backbone=Backbone(name="test_resnet"),
        model=Model(dim=16),
        images=Images(side_px=32, cache_side_px=36, path=path),
        training=Training(epochs=1, batch_size=10, sampler="shuffle", schedule="constant"),
        arm=Arm.parse(arm),
        protocol="paper",
    )


def test_an_untrained_network_scores_the_same_on_both_paths(birds, tmp_path):
    cached, files = (
        run_trial(make("untrained", path), tmp_path / path, birds, tmp_path / "cache")
        for path in ("cache", "classical")
    )
    assert cached.test == files.test
    assert cached.data.content_fingerprint != files.data.content_fingerprint, "pixels, and bytes of files"
    same = {"content_fingerprint": None}
    assert cached.data.model_copy(update=same) == files.data.model_copy(update=same)
    assert cached.data.images == {"train": 29, "test": 30}
    assert cached.id != files.id
    assert {k for k, v in cached.trial.shared.items() if files.trial.shared[k] != v} == {"images.path"}


def test_a_network_trains_on_the_files(birds, tmp_path):
    record = run_trial(make("contrastive", "classical"), tmp_path, birds, tmp_path / "cache")
    assert record.cost.images_seen == 20
    assert list((tmp_path / "cache").glob("images-*")) == [], "nothing is decoded beforehand"


def test_the_images_of_trials_are_decoded_and_announced_once(birds, tmp_path):
    messages, sources = [], Sources(tmp_path, birds, tmp_path / "cache")
    trials = [make(arm, path) for arm in ("untrained", "contrastive") for path in ("classical", "cache")]
    prepare_images(trials, sources, messages.append)
    prepare_images(trials, sources, messages.append)
    assert len(messages) == 1
    assert messages[0].startswith("cub200 at 36 px takes about 0.00 GB and ")
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1
