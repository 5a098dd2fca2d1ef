"""A trial with a frozen backbone, end to end: its record, its bits, and what it neither imports nor reads."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.config import Backbone
from harness.data.datasets import DatasetError
from harness.runs.run import Run
from harness.training import backbones, checkpoint
from harness.training.bench import Bench
from harness.training.devices import DeviceError
from harness.training.network import augmentation, build_embedder
from harness.training.pictures import Sources, features_of, images_of, open_dataset
from harness.training.trial import run_trial, steps
from harness.verify import verify
from tests.harness.training.interrupted import begun, outcome

ROOT = Path(__file__).parents[3]


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def noise(data):
    """The folder, its images replaced by noise, so that no score is perfect."""
    for number, path in enumerate(sorted(data.glob("*/*.png"))):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return data


def test_its_record_says_what_its_features_come_from(frozen, data, weights_of, tmp_path):
    record = run_trial(frozen("contrastive+feature"), tmp_path / "run", data)
    assert record.provenance["weights"] == Path(weights_of()).name
    assert record.provenance["initial_weights"] == digest(weights_of())
    about = {"interpolation": "bilinear", "config": "test_resnet.r160_in1k"}
    assert {name: record.provenance["normalisation"][name] for name in about} == about
    assert record.provenance["batch_norm_rows"] is None
    assert record.notes == ("only linear layers follow pooled: mixing there equals mixing unnormalised embeddings",)
    assert record.effective["stage"] == "pooled"
    assert record.cost.forward_passes_per_step > 1.5  # a mixed row crosses all that runs, the head
    assert record.cost.parameters == 96 * 16 + 16
    assert record.test["R@1"] > 0.5


def test_a_hidden_layer_needs_no_note(frozen, data, tmp_path):
    record = run_trial(frozen("contrastive+feature", model={"hidden": 8}), tmp_path / "run", data)
    assert record.notes == ()
    assert record.cost.parameters == 96 * 8 + 8 + 8 * 16 + 16


@pytest.mark.parametrize("arm", ["contrastive", "proxy_anchor+feature"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_resumed_trial_ends_in_the_same_bits(arm, views, frozen, data, tmp_path):
    trial = frozen(arm, images={"views": views})
    whole = run_trial(trial, tmp_path / "whole", data)
    for _ in range(2):
        assert begun(trial, tmp_path / "parts", data) == []
    parts = run_trial(trial, tmp_path / "parts", data)
    assert outcome(parts) == outcome(whole)
    one, two = (Run(tmp_path / name).checkpoints(trial) / "last.safetensors" for name in ("whole", "parts"))
    assert checkpoint.state_digest(checkpoint.load(one)[0]["model"]) == checkpoint.state_digest(
        checkpoint.load(two)[0]["model"]
    )


def test_seeds_and_views_differ(frozen, data, tmp_path):
    losses = {
        (seed, views): [e.loss for e in run_trial(frozen(seed=seed, images={"views": views}), tmp_path, data).curve]
        for seed, views in ((0, 1), (1, 1), (0, 3))
    }
    assert len({loss[1] for loss in losses.values()}) == 3


def test_other_weights_under_the_same_name_begin_again(frozen, data, weights_of, tmp_path):
    """The path is the same, the file is not: the checkpoint is set aside, and the features are computed anew."""
    file = shutil.copy(weights_of(), tmp_path / "weights.safetensors")
    trial = frozen().model_copy(update={"backbone": Backbone(name="test_resnet", pretrained=str(file))})
    begun(trial, tmp_path / "run", data)
    shutil.copy(weights_of(seed=1), file)
    (said,) = begun(trial, tmp_path / "run", data, epochs=3)
    assert "cannot be continued: the initial weights changed from " in said


PROCESS = """
import json, sys
from pathlib import Path
import PIL.Image
from harness.config import Trial
from harness.training.trial import run_trial

def refuse(*_, **__):
    raise AssertionError("an image file was opened")

PIL.Image.open = refuse
record = run_trial(Trial.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3])
heavy = ("timm", "torchvision", "huggingface_hub", "ray", "pandas")
print(json.dumps([[name for name in heavy if name in sys.modules], record.test, record.provenance["weights"]]))
"""


@pytest.mark.parametrize("published", [False, True])
def test_once_its_features_exist_it_imports_no_networks_and_opens_no_image(
    published, frozen, data, weights_of, tmp_path, monkeypatch
):
    trial, expected = frozen("contrastive+feature"), Path(weights_of()).name
    if published:
        backbone = Backbone(name="test_resnet", pretrained=True)
        trial, expected = trial.model_copy(update={"backbone": backbone}), "test_resnet.r160_in1k"
        monkeypatch.setattr(backbones, "published_file", lambda config: Path(weights_of()))
    features_of(trial, open_dataset(trial.dataset, data), Sources(tmp_path, data))
    words = [sys.executable, "-c", PROCESS, trial.model_dump_json(), str(tmp_path / "run"), str(data)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    imported, test, named = json.loads(done.stdout)
    assert imported == []
    assert named == expected
    assert test == run_trial(trial, tmp_path / "here", data).test


def test_a_file_of_features_needs_its_images_to_be_readable(frozen, data, tmp_path):
    (data / "c00/0.png").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"c00/0\.png"):
        run_trial(frozen(), tmp_path / "run", data)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_floor_of_the_features_scores_the_pooled_features(freeze, frozen, noise, tmp_path):
    trial = frozen("features", model={"backbone": "frozen" if freeze else "trained"})
    record = run_trial(trial, tmp_path / "run", noise)
    dataset = open_dataset(trial.dataset, noise)
    features = features_of(frozen(), dataset, Sources(tmp_path, noise)).array[:, 0]
    tested = np.flatnonzero(dataset.split == "test")
    expected = harness.evaluate(torch.tensor(features[tested]), dataset.labels[tested])
    assert 0 < record.test["MAP@R"] < 0.9
    assert record.test == pytest.approx({name: expected.values[name] for name in record.test}, abs=1e-12)
    assert (record.curve, record.selected_epoch, record.level) == ((), None, "floor")
    assert record.provenance["initial_weights"] == digest(trial.backbone.pretrained)


def test_the_untrained_floor_is_the_random_head_that_training_starts_from(frozen, noise, tmp_path):
    floors = [run_trial(frozen("untrained", seed), tmp_path / "run", noise) for seed in (0, 1)]
    assert floors[0].test["MAP@R"] != floors[1].test["MAP@R"]
    assert run_trial(frozen(), tmp_path / "run", noise).curve[0].validation == floors[0].validation


def test_ranks_are_refused(frozen, data, tmp_path):
    with pytest.raises(DeviceError, match="ranks = 2: a frozen backbone trains only a head, on one device; use 1"):
        next(steps(frozen(), Sources(tmp_path / "run", data, ranks=2)))


def test_it_is_verified_with_its_weights(frozen, data, tmp_path):
    run_trial(frozen("multi_similarity+feature"), tmp_path / "run", data)
    (verdict,) = verify(Run(tmp_path / "run"), data=data)
    assert (verdict.state, verdict.matches[0], verdict.matches[-1]) == (
        "matches",
        "outcomes: exact",
        "weights: exact",
    )


def test_a_batch_in_chunks_is_the_same_batch(frozen, data, tmp_path):
    trial = frozen("contrastive+feature", lr=1e-2)
    whole = run_trial(trial, tmp_path / "whole", data)
    for _ in steps(trial, Sources(tmp_path / "chunks", data, chunk_rows=3)):
        pass
    chunks = Run(tmp_path / "chunks").record(trial)
    assert chunks is not None
    assert [e.loss for e in chunks.curve[1:]] == pytest.approx([e.loss for e in whole.curve[1:]], rel=1e-5)
    assert chunks.notes[-1] == "the forward ran in chunks of 3 rows"


def test_images_of_one_colour_and_classes_that_look_alike_are_scored(frozen, data, tmp_path):
    """Equal features are ties, which count against the model."""
    for path in data.glob("*/*.png"):
        Image.new("RGB", (16, 16), (9, 9, 9)).save(path)
    record = run_trial(frozen(), tmp_path / "run", data)
    assert record.test["R@1"] == 0.0


def test_its_weights_fill_the_head_of_a_whole_network(frozen, data, tmp_path):
    trial = frozen(lr=1e-2)
    run_trial(trial, tmp_path / "run", data)
    bench = Bench.of(trial, Sources(tmp_path / "run", data))
    folder = Run(tmp_path / "run").checkpoints(trial)
    state = checkpoint.load(folder / "best.safetensors")[0]["model"]
    bench.network.load_state_dict(state)
    whole = build_embedder(trial).eval()
    missing, unexpected = whole.load_state_dict(state, strict=False)
    assert (unexpected, all(name.startswith("backbone.") for name in missing)) == ([], True)
    images = images_of(trial, bench.dataset, Sources("", data)).batch(np.arange(4))
    with torch.inference_mode():
        embeddings = whole(augmentation(trial, whole, bench.dataset).evaluate(images))
    torch.testing.assert_close(embeddings, bench.embed(torch.arange(4)), atol=1e-5, rtol=0)
