"""Commands about data: preparing what a grid needs."""

import re

import pytest

from harness.training import pictures
from tests.harness.pictures import class_folders

FROZEN = """
name: frozen
datasets: [folder]
backbones: [{name: test_resnet, pretrained: true}]
losses: [contrastive]
levels: [baseline, feature]
seeds: [0]
model: {dim: 16, backbone: frozen}
images: {side_px: 32}
training: {epochs: 1, batch_size: 8, examples_per_class: 2}
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of images, a grid with a frozen network for them, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "frozen.yaml").write_text(FROZEN)
    return class_folders(tmp_path / "photos", classes=12, images=3)


def test_prepare_makes_the_features_and_images_of_a_grid_once(command, photos, weights_of, monkeypatch):
    words = ("prepare", "--grid", "frozen.yaml", "--data", str(photos), "--weights", weights_of())
    code, text = command(*words)
    assert code == 0, text
    assert re.search(r"takes about 0\.00 GB and \S+ has [\d.]+ GB left: computing the features of 36 images", text)
    made = re.findall(r"36 (\w+) in (\S+), 0\.00 GB", text)
    assert [what for what, _ in made] == ["features", "images"]
    assert "features-folder-test_resnet-32px-" in made[0][1]
    monkeypatch.setattr(pictures, "_source", lambda *_: pytest.fail("computed again"))
    code, again = command(*words)
    assert (code, re.findall(r"36 (\w+) in (\S+), 0\.00 GB", again)) == (0, made)
    assert "computing" not in again


def test_prepare_for_a_trained_network_decodes_its_images(command, photos, weights_of, tmp_path):
    (tmp_path / "trained.yaml").write_text(FROZEN.replace(", backbone: frozen", ""))
    code, text = command("prepare", "--grid", "trained.yaml", "--data", str(photos), "--weights", weights_of())
    assert (code, len(re.findall(r"36 images in \S+, 0\.00 GB", text))) == (0, 1), text
    assert "features" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "prepare needs the name of a dataset, or --grid with a grid, and not both"),
        ("glyphs --grid quick", "prepare needs the name of a dataset, or --grid with a grid, and not both"),
        ("--grid frozen.yaml --option a=1", "--option a: the options of a dataset are in the grid; leave it out"),
        ("glyphs --weights w", "--weights and --device are for the features of a grid; add --grid, or leave them"),
        ("--grid qick", "did you mean 'quick'"),
        ("--grid frozen.yaml --weights none.pth", "say where it is with --data FOLDER"),
    ],
)
def test_wrong_words_of_prepare(command, photos, words, sentence):
    code, text = command("prepare", *words.split())
    assert code == 2, text
    assert re.search(sentence, text)
    assert "Traceback" not in text
