"""A trial continues only with the data, weights and code that it started with."""

import os
import shutil

import pytest
from safetensors.torch import save_file

from harness.audit import audit
from harness.config import Backbone
from harness.data import datasets
from harness.data.images import open_images
from harness.grid import Grid
from harness.launch import comparable_records, run_grid
from harness.runs import provenance
from harness.runs.errors import RunError
from harness.runs.run import Run
from harness.training import checkpoint, weights
from harness.training.backbones import ModelError, Unavailable
from harness.training.network import build_embedder
from harness.training.origin import origin_of, other_origins, weights_digest
from harness.training.pictures import Sources
from harness.training.trial import kind_of, run_trial, steps
from harness.verify import verify
from tests.harness.pictures import class_folders
from tests.harness.training.interrupted import begun, outcome, set_aside


def test_a_trial_does_not_continue_on_other_classes(folder_trial, data, tmp_path):
    trial, place = folder_trial(), tmp_path / "run"
    message, sources = [], Sources(place, data)
    begun(trial, place, data, 2)
    before = origin_of(trial, sources)["split"]
    class_folders(data, classes=4, images=5, first=12)
    epochs = [progress.epoch for progress in steps(trial, sources, message.append)]
    assert epochs == [1, 2, 3], "from the beginning"
    (sentence,) = message
    now = origin_of(trial, sources)["split"]
    assert sentence.startswith(
        f"the checkpoint of {trial.id} after epoch 2 cannot be continued: the split of the data changed from "
        f"{before[:12]} to {now[:12]}; the images changed from "
    )
    assert "; the trial starts again (kept as " in sentence
    (kept,) = set_aside(place)
    assert checkpoint.load(place / "set_aside" / kept / "last.safetensors")[1]["curve"][-1]["epoch"] == 2
    alone = run_trial(trial, tmp_path / "alone", data)
    assert outcome(Run(place).record(trial)) == outcome(alone)


@pytest.mark.parametrize("path", ["cache", "classical"])
def test_a_trial_does_not_continue_on_other_pixels_with_the_same_names(path, folder_trial, data, tmp_path):
    trial = folder_trial()
    trial = trial.model_copy(update={"images": trial.images.model_copy(update={"path": path})})
    begun(trial, tmp_path / "run", data)
    pictures = sorted(data.rglob("*.png"))
    pictures[0].write_bytes(pictures[-1].read_bytes())
    (sentence,) = begun(trial, tmp_path / "run", data)
    assert "cannot be continued: the images changed from " in sentence
    assert "split of the data" not in sentence


@pytest.mark.parametrize("path", ["cache", "classical"])
def test_a_copy_of_the_same_data_is_the_same(path, folder_trial, data, tmp_path):
    trial = folder_trial()
    trial = trial.model_copy(update={"images": trial.images.model_copy(update={"path": path})})
    begun(trial, tmp_path / "run", data, 2)
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    running = steps(trial, Sources(tmp_path / "run", copy))
    assert next(running).epoch == 2
    assert set_aside(tmp_path / "run") == []


def test_images_of_two_folders_with_equal_sizes_and_times_are_not_confused(folder_trial, tmp_path):
    """As two archives give that were packed with one date: the decoded ones lie in one cache."""
    found = []
    for name, shade in (("a", 0), ("b", 100)):
        folder = class_folders(tmp_path / name, classes=4, images=2, suffix=".bmp", shade=shade)
        for path in folder.rglob("*.bmp"):
            os.utime(path, (1, 1))
        found.append(open_images(datasets.load("folder", folder), 8, tmp_path / "cache"))
    assert found[0].path != found[1].path
    assert found[0].fingerprint != found[1].fingerprint
    assert (found[0].array != found[1].array).any()


def test_a_trial_does_not_continue_from_other_weights(folder_trial, data, tmp_path):
    network = {
        n.removeprefix("backbone."): t for n, t in _initial(folder_trial()).items() if n.startswith("backbone.")
    }
    path = tmp_path / "weights.safetensors"
    trial = folder_trial().model_copy(update={"backbone": Backbone(name="test_resnet", pretrained=str(path))})
    save_file(network, path)
    first = checkpoint.digest(path)
    begun(trial, tmp_path / "run", data)
    save_file({name: tensor * 2 if "conv1.0" in name else tensor for name, tensor in network.items()}, path)
    (sentence,) = begun(trial, tmp_path / "run", data)
    second = checkpoint.digest(path)
    assert f": the initial weights changed from {first[:12]} to {second[:12]};" in sentence
    assert run_trial(trial, tmp_path / "run", data).provenance["initial_weights"] == second


@pytest.mark.parametrize("pretrained", [True, "w.safetensors"])
def test_missing_weights_give_one_message_and_hide_no_records(pretrained, folder_trial, data, tmp_path, monkeypatch):
    def gone(*_):
        raise Unavailable("the published weights of test_resnet.r160_in1k are not on this machine")

    monkeypatch.setattr(weights, "fetch", gone)
    trial = folder_trial("untrained").model_copy(
        update={"backbone": Backbone(name="test_resnet", pretrained=pretrained)}
    )
    message = (
        "the published weights of" if pretrained is True else "the weights w.safetensors cannot be read: No such file"
    )
    with pytest.raises(ModelError, match=message) as error:
        weights_digest(trial)
    assert kind_of(error.value) == "error", "another machine may have them"
    record = run_trial(folder_trial("untrained"), tmp_path, data).model_copy(update={"trial": trial})
    assert other_origins([record], [trial], Sources(tmp_path, data)) == []


def _initial(trial):
    return {name: tensor.contiguous() for name, tensor in build_embedder(trial).state_dict().items()}


def test_a_trial_does_not_continue_under_another_version(folder_trial, data, tmp_path, monkeypatch):
    trial = folder_trial()
    begun(trial, tmp_path / "run", data)
    versions = provenance.training_versions()
    newer = {**versions, "timm": "99.0", "the training code": "f" * 64}
    monkeypatch.setattr("harness.training.origin.training_versions", lambda: newer)
    (sentence,) = begun(trial, tmp_path / "run", data)
    old = versions["the training code"][:12]
    assert f": timm changed from {versions['timm']} to 99.0; the training code changed from {old} to " in sentence


def test_a_checkpoint_of_an_older_version_is_set_aside(folder_trial, data, tmp_path):
    trial = folder_trial()
    begun(trial, tmp_path / "run", data)
    path = Run(tmp_path / "run").checkpoints(trial) / "last.safetensors"
    sections, meta = checkpoint.load(path)
    for new in ("origin", "earlier_s", "peak_gb"):
        del meta[new]
    checkpoint.save(path, sections, {**meta, "curve": meta["curve"][1:]})
    (sentence,) = begun(trial, tmp_path / "run", data)
    assert "after epoch 1 cannot be continued: it does not state its data, weights and code;" in sentence


def test_the_training_code_exists_and_excludes_reports():
    assert [place for place in provenance.TRAINS if not (provenance.ROOT / place).exists()] == []
    assert not any("report" in place or "launch" in place for place in provenance.TRAINS)
    assert len(provenance.training_versions()["the training code"]) == 64


@pytest.fixture
def grid(tmp_path):
    return Grid.model_validate(
        {
            "name": "g",
            "datasets": ["folder"],
            "backbones": ["test_resnet"],
            "losses": ["contrastive"],
            "levels": ["baseline"],
            "floors": [],
            "seeds": [0],
            "model": {"dim": 16},
            "images": {"side_px": 32},
            "training": {"epochs": 1, "batch_size": 8, "examples_per_class": 2, "lr": 1e-3, "schedule": "constant"},
        }
    )


@pytest.mark.parametrize(("where", "protocol"), [("", "fair"), ("search", "tuned")])
def test_results_from_other_data_are_not_mixed(where, protocol, grid, data, tmp_path):
    place = tmp_path / "run"
    (trial,) = grid.trials()
    record = run_trial(trial, place / where, data)
    sources, grid = Sources(place, data), grid.model_copy(update={"protocol": protocol})
    assert comparable_records(Run(place), grid, grid.trials(), sources) == ({trial.id} if not where else set())
    class_folders(data, classes=4, images=5, first=12)
    now = origin_of(trial, sources)
    with pytest.raises(RunError) as refused:
        comparable_records(Run(place), grid, grid.trials(), sources)
    split, images = record.data.split_fingerprint, record.data.content_fingerprint
    assert images is not None
    assert str(refused.value) == (
        f"{place / where} holds results from other data:\n"
        f"  folder: the split of the data changed from {split[:12]} to {now['split'][:12]} (1 record)\n"
        f"  folder: the images changed from {images[:12]} to {now['images'][:12]} (1 record)\n"
        "Results from different data do not share a table: name another folder with --out (OUT=… of make), or "
        "restore the old data."
    )


def test_results_from_other_pixels_are_not_mixed(grid, data, tmp_path):
    (trial,) = grid.trials()
    sources = Sources(tmp_path / "run", data)
    record = run_trial(trial, sources.out, data)
    assert other_origins([record], [trial], sources) == []
    old = record.data.model_copy(update={"content_fingerprint": None, "source_stamp": None})
    picture = min(data.rglob("*.png"))
    picture.touch()
    assert other_origins([record], [trial], sources) == [], "the same pixels, at another time"
    picture.write_bytes(sorted(data.rglob("*.png"))[-1].read_bytes())
    (sentence,) = other_origins([record], [trial], sources)
    assert sentence.startswith("folder: the images changed from ")
    assert other_origins([record.model_copy(update={"data": old})], [trial], sources) == [], "it does not tell"


def test_a_run_refuses_to_add_to_results_from_other_data(grid, data, tmp_path):
    """Although all its trials are done."""
    run_trial(grid.trials()[0], tmp_path / "run", data)
    class_folders(data, classes=4, images=5, first=12)
    with pytest.raises(RunError, match="holds results from other data:\n  folder: the split of the data changed"):
        run_grid(grid, tmp_path / "run", data)


def test_the_audit_finds_records_from_other_data(grid, data, tmp_path):
    first, second = (trial for seed in (0, 1) for trial in grid.model_copy(update={"seeds": (seed,)}).trials())
    run_trial(first, tmp_path / "run", data)
    class_folders(data, classes=4, images=5, first=12)
    run_trial(second, tmp_path / "run", data)
    found = [finding.sentence for finding in audit(Run(tmp_path / "run")) if finding.severity == "E"]
    assert any(sentence.startswith("FAIR-01 folder: 2 different copies of the data (") for sentence in found)


def test_verify_does_not_run_weights_on_other_pixels(folder_trial, data, tmp_path):
    run_trial(folder_trial(), tmp_path / "run", data)
    picture = min(data.rglob("*.png"))
    picture.write_bytes(sorted(data.rglob("*.png"))[-1].read_bytes())
    (verdict,) = verify(Run(tmp_path / "run"), data=data)
    assert verdict.missing == [
        "the weights have the recorded digest, but were not run: the data differ from those of the record"
    ]
