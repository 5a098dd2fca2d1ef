"""A trial: the same bits however often it is interrupted, the same streams for every arm, the test read once."""

import json

import numpy as np
import pytest
import torch

from harness.config import Choice, Level
from harness.fairness import protocols as selection
from harness.runs.record import Epoch
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training import loop as train
from harness.training.network import Pixels
from harness.training.pictures import Sources, open_dataset
from harness.training.trial import run_trial, steps
from tests.harness.pictures import class_folders


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="contrastive", stage=None, **changes):
        trial = make_trial(arm, **changes)
        if stage:
            metrix = trial.arm.metrix.model_copy(update={"stage": stage})
            trial = trial.model_copy(update={"arm": trial.arm.model_copy(update={"metrix": metrix})})
        return trial.model_copy(update={"dataset": Choice(name="glyphs", options={"classes": 16}), "keep": "weights"})

    return tiny


def outcome(record):
    """What must be equal bit for bit."""
    return record.test, record.selected_epoch, [(e.loss, e.validation) for e in record.curve]


ARMS = ("contrastive", "proxy_anchor+embedding", "multi_similarity+input", "contrastive+feature")


@pytest.mark.parametrize("arm", ARMS)
def test_an_interrupted_trial_ends_in_the_same_bits(arm, tiny, tmp_path):
    trial = tiny(arm, stage="layer3" if "feature" in arm else None, epochs=3)
    whole = run_trial(trial, tmp_path / "whole")
    epochs = []
    for _ in range(2):  # stopped after an epoch, twice; each time what was in memory is lost
        running = steps(trial, Sources(tmp_path / "parts"))
        epochs = [next(running).epoch for _ in range(2)]
        torch.rand(3)
    assert epochs == [2, 3]  # the second one begins with the state it was left, after epoch 2
    parts = run_trial(trial, tmp_path / "parts")
    assert outcome(parts) == outcome(whole)
    assert [epoch.epoch for epoch in parts.curve] == [0, 1, 2, 3]
    a, b = (Run(tmp_path / name).checkpoints(trial) / "last.safetensors" for name in ("whole", "parts"))
    (one, _), (two, _) = checkpoint.load(a), checkpoint.load(b)
    for section in ("model", "criterion"):
        assert one[section].keys() == two[section].keys()
        assert all(torch.equal(one[section][name], two[section][name]) for name in one[section])


@pytest.mark.parametrize("at", ["embedding", "feature", "input"])
def test_metrix_of_weight_zero_is_the_baseline_bit_for_bit(at, tiny, tmp_path):
    plain = run_trial(tiny("multi_similarity"), tmp_path)
    mixed = run_trial(tiny(f"multi_similarity+{at}[weight=0]", stage="layer3" if at == "feature" else None), tmp_path)
    assert outcome(mixed) == outcome(plain)
    assert mixed.cost.forward_passes_per_step == 1.0


def test_every_arm_of_a_seed_sees_the_same_batches_and_augmentations(tiny, tmp_path, monkeypatch):
    """Whatever an arm draws of its own, what the network is shown stays the same."""
    shown, batches = {}, train._batches

    def watched(*arguments):
        for pixels, classes in batches(*arguments):
            shown[name].append((pixels.sum().item(), torch.initial_seed()))
            yield pixels, classes

    monkeypatch.setattr(train, "_batches", watched)
    for name in ("contrastive", "proxy_anchor", "multi_similarity+input", "contrastive+embedding"):
        shown[name] = []
        run_trial(tiny(name), tmp_path)
    assert len(shown["contrastive"]) > 4
    assert all(pixels == shown["contrastive"] for pixels in shown.values())


def test_input_mixing_doubles_the_forward_passes_and_embedding_adds_none(tiny, tmp_path):
    cost = {at: run_trial(tiny(f"contrastive+{at}"), tmp_path).cost for at in ("input", "embedding")}
    assert cost["input"].forward_passes_per_step == pytest.approx(2.0)
    assert cost["embedding"].forward_passes_per_step == 1.0


def test_the_test_split_is_read_once_and_its_results_are_kept(tiny, tmp_path):
    trial = tiny().model_copy(update={"keep": "embeddings"})
    record = run_trial(trial, tmp_path)
    run_trial(trial, tmp_path)
    (line,) = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["cell"] == "glyphs/test_resnet/contrastive/s0"
    kept = np.load(tmp_path / "per_query" / f"{record.id}.npz")
    dataset = open_dataset(trial.dataset)
    assert set(kept["ids"]) == {
        key for key, split in zip(dataset.keys, dataset.split, strict=True) if split == "test"
    }
    assert kept["query R@1"].mean() == pytest.approx(record.test["R@1"])
    assert kept["embeddings"].shape == (record.data.images["test"], 16)
    assert kept["embeddings"].dtype == np.float16
    assert not Run(tmp_path).checkpoints(trial).exists()


def test_protocol_paper_trains_on_all_classes_and_records_the_best_test_epoch_beside_the_last(tiny, tmp_path):
    trial = tiny(epochs=3).model_copy(update={"protocol": "paper"})
    next(steps(trial, Sources(tmp_path)))
    record = run_trial(trial, tmp_path)
    assert record.data.classes == {"train": 16, "test": 16}
    assert (record.selected_epoch, [e.epoch for e in record.curve], record.validation) == (3, [0, 1, 2, 3], {})
    assert [epoch.validation for epoch in record.curve] == [{}] * 4
    assert record.best_test_epoch is not None
    assert 1 <= record.best_test_epoch["epoch"] <= 3
    assert record.best_test_epoch["R@1"] >= record.test["R@1"]
    assert record.notes == ()
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 4  # each epoch, and the last again
    alone = run_trial(tiny(epochs=3).model_copy(update={"protocol": "paper"}), tmp_path / "undisturbed")
    assert (alone.test, alone.best_test_epoch) == (record.test, record.best_test_epoch)


def test_a_search_trial_never_reads_the_test_split(tiny, tmp_path):
    record = run_trial(tiny().model_copy(update={"protocol": "search"}), tmp_path)
    assert record.test == {}
    assert record.validation["MAP@R"] > 0
    assert not (tmp_path / "ledger.jsonl").exists()
    assert not (tmp_path / "per_query").exists()


def test_a_baseline_that_trains_longer_has_every_milestone_scaled(tiny, tmp_path):
    trial = tiny("contrastive@2x", epochs=2, schedule="step", step_epochs=1, gamma=0.5)
    record = run_trial(trial, tmp_path)
    assert [epoch.lr for epoch in record.curve] == pytest.approx([0, 1e-3, 1e-3, 5e-4, 5e-4])
    assert (record.level, record.baseline, record.arm) == ("longer", "contrastive", "contrastive@2x")


def test_another_checkpoint_of_the_same_cell_is_marked(tiny, tmp_path):
    trial = tiny()
    run_trial(trial, tmp_path)
    other = tiny(lr=2e-3)
    assert run_trial(trial, tmp_path).notes == ()
    assert run_trial(other, tmp_path).notes[0].startswith("FAIR-03 test read")


def test_a_record_names_the_tested_weights_and_their_spread(tiny, tmp_path):
    record = run_trial(tiny(epochs=3), tmp_path)
    data, origin = record.data, record.provenance
    assert data.test_asked == data.test_queries + data.test_excluded == data.images["test"]
    assert data.distinct_classes == sum(data.classes.values()) == 32
    assert (origin["tested_epoch"], origin["driver"], record.test_checkpoints) == (record.selected_epoch, None, 1)
    for spread in (record.test_spread, *(epoch.spread for epoch in record.curve)):
        assert 0 < spread["embedding std"] <= 0.25  # 1/√16
        assert 1 <= spread["effective rank"] <= 16


def test_a_loss_that_is_not_finite_stops_the_trial_with_the_step(tiny, tmp_path):
    with pytest.raises(
        train.Diverged, match=r"the loss is (nan|inf) at epoch \d, step \d+; (the last finite|no loss)"
    ):
        run_trial(tiny("contrastive", lr=1e30), tmp_path)


def test_floors_train_nothing_and_are_the_same_for_every_loss(tiny, tmp_path):
    untrained, pixels = (run_trial(tiny(floor), tmp_path) for floor in ("untrained", "pixels"))
    assert (untrained.curve, untrained.selected_epoch, untrained.cost.steps) == ((), None, 0)
    assert pixels.test["R@1"] > untrained.test["R@1"] > 0


def test_selection_takes_the_highest_validation_score_and_the_earliest_on_ties():
    curve = [
        Epoch(epoch=e, loss=0.0, lr=0.1, validation={"MAP@R": s, "R@1": 1 - s}, train_s=0, validation_s=0)
        for e, s in ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.1))
    ]
    assert (selection.select(curve), selection.last(curve)) == (2, 4)
    start = Epoch(epoch=0, loss=None, lr=0.0, validation={"MAP@R": 0.9, "R@1": 1}, train_s=0, validation_s=0)
    assert selection.select([start, *curve]) == 2, "the starting point is never chosen"
    for nothing in ([], [start]):
        for choose in (selection.select, selection.last):
            with pytest.raises(ValueError, match="no epoch"):
                choose(nothing)


def test_schedules():
    from harness.config import Training

    step = Training(schedule="step", step_epochs=2, gamma=0.1)
    assert [train.step_size(step, epoch) for epoch in (1, 2, 3, 5)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = Training(schedule="cosine", epochs=4)
    assert [train.step_size(cosine, epoch) for epoch in (1, 3)] == pytest.approx([1, 0.5])


def test_head_warm_up_leaves_the_backbone_as_it_was(tiny, tmp_path):
    trial = tiny(epochs=2, warmup_epochs=1)
    from harness.training.network import build_embedder

    initial = build_embedder(trial).state_dict()
    running = steps(trial, Sources(tmp_path))
    next(running)
    after, _ = checkpoint.load(Run(tmp_path).checkpoints(trial) / "last.safetensors")
    weights = [name for name in initial if name.endswith("weight")]
    assert all(torch.equal(after["model"][n], initial[n]) for n in weights if not n.startswith("head"))
    assert not torch.equal(after["model"]["head.weight"], initial["head.weight"])
    next(running)
    later, _ = checkpoint.load(Run(tmp_path).checkpoints(trial) / "last.safetensors")
    assert not all(
        torch.equal(later["model"][name], initial[name]) for name in weights if not name.startswith("head")
    )


def test_notes_on_feature_mixing(tiny, tmp_path):
    (early,) = run_trial(tiny("contrastive+feature", stage="layer3"), tmp_path).notes
    assert early == "after layer3 clean and mixed rows run together, so BatchNorm sees both"
    (late,) = run_trial(tiny("contrastive+feature"), tmp_path).notes
    assert "mixing there equals mixing unnormalised embeddings" in late


def test_the_level_of_an_arm_reaches_metrix(tiny):
    from harness.training.criterion import build_criterion

    criterion = build_criterion(tiny("contrastive+embedding[weight=0.2,pairs=pos-neg]"), 4)
    assert (criterion.weight, criterion.pairs, criterion.at) == (0.2, "pos-neg", "embedding")
    assert isinstance(Level(at="embedding"), Level)


def test_embeddings_that_are_not_finite_stop_the_trial_as_diverged(make_trial, tmp_path):
    """A single step spoils the weights, and no loss is computed after it."""
    class_folders(tmp_path / "data", classes=12, images=3)
    trial = make_trial(dataset="folder", epochs=1, batch_size=10, lr=1e30, sampler="shuffle")
    with pytest.raises(train.Diverged, match=r"^6 of 6 embeddings are zero or not finite, so nothing can be scored$"):
        run_trial(trial, tmp_path / "run", tmp_path / "data", device="cpu")


def test_the_pixels_of_large_images_are_averaged():
    images = torch.rand(2, 3, 128, 128)
    by_hand = images.unflatten(3, (64, 2)).unflatten(2, (64, 2)).mean((3, 5))
    assert torch.allclose(Pixels()(images), by_hand.flatten(1), atol=1e-6)
    assert torch.equal(Pixels()(images[..., :64, :64]), images[..., :64, :64].flatten(1))


def test_a_black_image_counts_as_an_evenly_grey_one():
    """By pixels alone: it has no direction of its own."""
    images = torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 0.4), torch.eye(2).expand(3, 2, 2)])
    vectors = torch.nn.functional.normalize(Pixels()(images))
    assert torch.equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] == pytest.approx(0.5**0.5)
    assert torch.equal(Pixels()(images)[1:], images[1:].flatten(1)), "others stay as they are"
