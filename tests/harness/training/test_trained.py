"""Loading the network of a finished trial: the same transform and embeddings, or a sentence that says why not."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.config import Arm, Backbone, Choice, Images, Model, Training, Trial
from harness.data.datasets import DatasetError
from harness.errors import UserError
from harness.runs.record import write_json
from harness.runs.run import Run
from harness.training import checkpoint, pictures, trained
from harness.training.backbones import ModelError
from harness.training.bench import Bench
from harness.training.embedder import Embedder
from harness.training.export import export
from harness.training.pictures import Sources
from harness.training.trained import NotKept
from harness.training.trial import run_trial

ARMS = ("contrastive", "contrastive+input", "untrained")
SHAPES = ((40, 32), (32, 300), (57, 44), (32, 32))  # of images in a folder, one of them very long


def photographs(folder):
    """Write images of odd shapes and kinds into class folders; return the folder."""
    generator = np.random.default_rng(0)
    for c in range(12):
        (folder / f"c{c:02}").mkdir(parents=True)
        for i, (height, width) in enumerate(SHAPES):
            pixels = (generator.random((height, width, 3)) * 120 + 10 * c).astype(np.uint8)
            image = Image.fromarray(pixels)
            if i == 0:
                image = image.convert(("L", "P", "RGBA")[c % 3])
            image.save(folder / f"c{c:02}" / f"{i}.png")
    return folder


def small(arm):
    """Return a trial on the photographs that keeps its weights."""
    return Trial(
        dataset=Choice(name="folder"),
        backbone=Backbone(name="test_resnet"),
        model=Model(dim=16),
        images=Images(side_px=32, crop_scale=(0.6, 1.0)),
        training=Training(epochs=1, batch_size=8, examples_per_class=2, lr=1e-3, schedule="constant"),
        arm=Arm.parse(arm),
        keep="weights",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of three arms, in each of which the weights were kept."""
    folder = tmp_path_factory.mktemp("finished")
    for arm in ARMS:
        run_trial(small(arm), folder, data=data)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def record(run):
    return next(record for record in run.records() if record.arm == "contrastive")


def test_a_trial_is_found_by_id_by_arm_and_seed_or_by_a_part(run, record):
    for name in (record.id, "contrastive-s0", record.id[-8:]):
        assert harness.load(run, name).record == record
    assert harness.load(run.folder, "contrastive+input-s0").record.arm == "contrastive+input"


def test_embeddings_are_those_of_the_test_read(run, record, data):
    embedder = harness.load(run, "contrastive-s0", device="cpu")
    with np.load(run.per_query(record.id)) as kept:
        stored, ids = kept["embeddings"], kept["ids"]
    progress = []
    found = embedder.embed([data / name for name in ids], batch=10, progress=lambda *at: progress.append(at))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, stored.astype(np.float32), atol=1e-3)  # stored in half precision
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert progress == [(10, 24), (20, 24), (24, 24)]
    assert not embedder.network.training


IMAGES = {
    "the whole image": Images(side_px=32),
    "the centre of a larger one": Images(side_px=32, cache_side_px=48),
    "a usual crop": Images(side_px=70),
    "classical": Images(side_px=32, path="classical"),
    "classical crop": Images(side_px=70, path="classical", cache_side_px=75),
}


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_the_transform_is_that_of_the_trial_bit_for_bit(images, backbone, data, make_trial, record, tmp_path):
    trial = make_trial(backbone=backbone).model_copy(update={"dataset": Choice(name="folder"), "images": images})
    bench = Bench.of(trial, Sources(tmp_path, data, tmp_path / "cache", "cpu"))
    assert isinstance(bench.model, Embedder)
    embedder = trained.Trained(bench.model, record.model_copy(update={"trial": trial}), torch.device("cpu"))
    chosen = range(0, len(bench.dataset), 5)
    expected = bench.augmentation.evaluate(bench.images.batch(np.array(chosen)))
    assert expected.shape[1:] == (3, images.side_px, images.side_px)
    for i, row in zip(chosen, expected, strict=True):
        file = data / bench.dataset.keys[i]
        assert torch.equal(embedder.transform(file), row)
        with Image.open(file) as opened:
            assert torch.equal(embedder.transform(opened), row)


def test_a_turned_photograph_is_turned_back(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    transform = harness.load(run, "contrastive-s0").transform
    with Image.open(tmp_path / "turned.png") as opened:
        turned = transform(opened)
    assert torch.equal(turned, transform(tmp_path / "plain.png"))


def test_images_that_cannot_be_read_are_named_or_left_out(run, data, tmp_path):
    embedder = harness.load(run, "contrastive-s0")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no more")
    files = [data / "c00/1.png", broken, data / "c01/2.png"]
    with pytest.raises(DatasetError, match=r"broken\.png: UnidentifiedImageError"):
        embedder.embed(files)
    problems = {}
    found = embedder.embed(files, batch=2, unreadable=problems.__setitem__)
    assert list(problems) == [1]
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], embedder.embed([files[0], files[2]]), atol=1e-5)
    assert embedder.embed([]).shape == (0, 16)


def began_with(run, record, weights, **provenance):
    """Rewrite a record as that of a trial that began with a file of weights."""
    backbone = record.trial.backbone.model_copy(update={"pretrained": str(weights)})
    trial = record.trial.model_copy(update={"backbone": backbone})
    changed = record.model_copy(update={"trial": trial, "provenance": {**record.provenance, **provenance}})
    write_json(run.record_path(record.trial), changed.model_dump(mode="json"))
    run.checkpoints(record.trial).rename(run.checkpoints(trial))


def test_neither_the_data_nor_the_initial_weights_are_needed(run, record, monkeypatch):
    began_with(run, record, "gone.safetensors")
    monkeypatch.setattr(pictures, "open_dataset", None)
    images = torch.randn(2, 3, 32, 32)
    assert harness.load(run, record.id)(images).norm(dim=1).allclose(torch.ones(2))


def refused(run, trial="contrastive-s0", kind: type[UserError] = NotKept, **options):
    with pytest.raises(kind) as caught:
        harness.load(run, trial, **options)
    return str(caught.value)


def test_a_trial_that_does_not_exist_is_refused_with_those_that_do(run, record):
    assert "did you mean 'contrastive-s0'" in refused(run, "contrastve-s0", UserError)
    assert record.id in refused(run, "zzz", UserError)
    several = refused(run, "contrastive", UserError)
    assert several.startswith(f"'contrastive' matches 2 trials of {run.place}; choose one of\n  ")
    assert record.id in several
    assert "is not a run folder" in refused(run.folder / "records", "x", UserError)


def test_what_kept_no_network_says_why(run, record):
    assert "is a floor: nothing was trained" in refused(run, "untrained-s0")
    assert "leave them out" in refused(run, "contrastive-s0", UserError, weights="some.safetensors")
    best = run.checkpoints(record.trial) / "best.safetensors"
    best.rename(best.with_name("aside"))
    assert f"{best} is missing" in refused(run)
    trial = record.trial.model_copy(update={"keep": "embeddings"})
    write_json(run.record_path(trial), record.model_copy(update={"trial": trial}).model_dump(mode="json"))
    assert "did not keep its network (keep: embeddings); run it again with --set keep=weights" in refused(run)
    failing = record.trial.model_copy(update={"seed": 9, "arm": Arm.parse("triplet")})
    run.fail(failing, "diverged", "the loss is nan", "")
    assert "has failed (diverged: the loss is nan)" in refused(run, "triplet-s9")


def test_weights_of_another_trial_are_refused(run, record):
    other = next(one for one in run.records() if one.arm == "contrastive+input")
    shutil.copy(run.checkpoints(other.trial) / "best.safetensors", run.checkpoints(record.trial))
    assert "were tested: it belongs to another run" in refused(run, kind=checkpoint.CheckpointError)


@pytest.fixture(params=[None, 12], ids=["linear", "hidden"])
def frozen(request, data, tmp_path):
    """A run with a trial whose backbone was frozen, and the file of that backbone."""
    body = tmp_path / "body.safetensors"
    backbone = Embedder("test_resnet", dim=1, pretrained=False, side_px=32, generator=1).backbone
    checkpoint.save_tensors(body, backbone.state_dict(), {})
    trial = small("contrastive").model_copy(
        update={
            "model": Model(dim=16, backbone="frozen", hidden=request.param),
            "backbone": Backbone(name="test_resnet", pretrained=str(body)),
        }
    )
    run_trial(trial, tmp_path / "frozen", data=data, cache=tmp_path / "cache")
    return Run(tmp_path / "frozen"), body


def test_a_frozen_backbone_is_read_again(frozen, data, tmp_path):
    run, body = frozen
    (record,) = run.records()
    with np.load(run.per_query(record.id)) as kept:
        stored, files = kept["embeddings"].astype(np.float32), [data / name for name in kept["ids"]]
    np.testing.assert_allclose(harness.load(run, "contrastive-s0").embed(files), stored, atol=1e-3)
    moved = body.rename(tmp_path / "moved.safetensors")
    sentence = refused(run, kind=ModelError)
    assert f"the weights {body} cannot be read" in sentence
    assert "--weights FILE" in sentence
    np.testing.assert_allclose(harness.load(run, "contrastive-s0", weights=moved).embed(files), stored, atol=1e-3)


def test_another_backbone_than_the_frozen_one_is_refused(frozen):
    run, body = frozen
    before = checkpoint.digest(body)
    checkpoint.save_tensors(body, {name: tensor + 1 for name, tensor in checkpoint.tensors(body).items()}, {})
    sentence = refused(run, kind=ModelError)
    assert before in sentence
    assert checkpoint.digest(body) in sentence


def test_a_frozen_trial_exports_backbone_and_head_together(frozen, tmp_path):
    run, body = frozen
    embedder = harness.load(run, "contrastive-s0", device="cpu")
    export(embedder, tmp_path / "exported")
    tensors = checkpoint.tensors(tmp_path / "exported/model.safetensors")
    assert len(tensors) == len(embedder.network.state_dict())
    prefix = "backbone." if embedder.network.hidden else ""
    assert all(torch.equal(tensors[prefix + name], tensor) for name, tensor in checkpoint.tensors(body).items())
