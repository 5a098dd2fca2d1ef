"""Verification: a record that holds, and every way in which one can not."""

import shutil

import numpy as np
import pytest

from harness.cli import main
from harness.config import Choice
from harness.fairness.ledger import Ledger
from harness.runs.record import write_json
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training.bench import Bench, Unfair
from harness.training.scoring import score_test
from harness.training.trial import run_trial
from harness.verify import SPARE, _moved, verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one trained arm and one floor, weights kept."""
    from harness.config import Arm, Backbone, Images, Model, Training, Trial

    folder = tmp_path_factory.mktemp("finished")
    for arm in ("contrastive", "untrained"):
        trial = Trial(
            dataset=Choice(name="glyphs", options={"classes": 16}),
            backbone=Backbone(name="test_resnet"),
            model=Model(dim=16),
            images=Images(side_px=32, crop_scale=(0.6, 1.0)),
            training=Training(epochs=2, batch_size=20, lr=1e-3, schedule="constant"),
            arm=Arm.parse(arm),
            keep="weights",
        )
        run_trial(trial, folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def record(run):
    return next(record for record in run.records() if record.arm == "contrastive")


def rewrite(run, record, **changes):
    write_json(run.record_path(record.trial), record.model_copy(update=changes).model_dump(mode="json"))


def store(run, record, **changes):
    with np.load(run.per_query_path(record.id)) as kept:
        run.keep_queries(record.trial, **{**kept, **changes})


def contrastive(run):
    (found,) = verify(run, only="contrastive")
    return found


def test_what_a_run_left_matches_its_records(run, record):
    trained, floor = verify(run)
    assert (trained.state, floor.state) == ("matches", "matches"), (trained, floor)
    assert [message.partition(":")[0] for message in trained.matches] == ["outcomes", "embeddings", "weights"]
    assert [message.partition(":")[0] for message in floor.matches] == ["outcomes", "embeddings"]
    assert trained.matches[0] == "outcomes: exact"
    assert trained.matches[2] == "weights: exact"


def test_verifying_is_no_second_read_of_the_test(run, record):
    contrastive(run)
    ledger = Ledger(run.ledger)
    own = [entry for entry in ledger.entries() if "contrastive" in entry.cell]
    assert len(own) == 2
    assert own[0].key == own[1].key
    assert ledger.read_again() == {}


def test_an_edited_score(run, record):
    rewrite(run, record, test={**record.test, "R@1": record.test["R@1"] + 1e-9})
    found = contrastive(run)
    assert found.state == "differs"
    assert found.differs[0].startswith(f"R@1 is recorded as {record.test['R@1'] + 1e-9}, but its outcomes average to")


def test_outcomes_edited_together_with_the_score(run, record):
    outcomes = np.ones(record.data.test_queries, bool)
    outcomes[: SPARE + 1] = False
    store(run, record, **{"query R@8": outcomes})
    rewrite(run, record, test={**record.test, "R@8": float(outcomes.mean(dtype=np.float64))})
    found = contrastive(run)
    assert found.state == "differs"
    assert "from the embeddings, recorded" in found.differs[0]


def test_embeddings_of_something_else(run, record):
    rng = np.random.default_rng(0)
    store(run, record, embeddings=rng.standard_normal((record.data.images["test"], 16)).astype(np.float16))
    found = contrastive(run)
    assert found.state == "differs"
    assert all("embeddings" in message for message in found.differs)
    store(run, record, embeddings=np.zeros((record.data.images["test"], 16), np.float16))
    assert "the stored embeddings cannot be scored" in contrastive(run).differs[0]


def test_weights_of_something_else_are_not_shown_the_test(run, record):
    path = run.checkpoints(record.trial) / "best.safetensors"
    sections, meta = checkpoint.load(path)
    sections["model"]["head.weight"] += 1e-6
    checkpoint.save(path, sections, meta)
    before = Ledger(run.ledger).entries()
    found = contrastive(run)
    assert found.state == "differs"
    assert f"but {record.provenance['tested_weights'][:12]} were tested" in found.differs[0]
    assert Ledger(run.ledger).entries() == before


def test_weights_of_another_epoch(run, record):
    path = run.checkpoints(record.trial) / "best.safetensors"
    sections, meta = checkpoint.load(path)
    checkpoint.save(path, sections, {**meta, "epoch": 7})
    assert "is of epoch 7, not" in contrastive(run).differs[0]


def test_settings_that_were_changed_afterwards(run, record):
    path = run.record_path(record.trial)
    path.write_text(path.read_text().replace('"batch_size": 20', '"batch_size": 40'))
    found = contrastive(run)
    assert found.state == "differs"
    assert found.differs[0].startswith("its settings belong to glyphs-test_resnet-contrastive-s0-")


@pytest.mark.parametrize("name", ["per_query/{id}.npz", "checkpoints/{id}/best.safetensors"])
def test_a_missing_file_is_named(name, run, record):
    path = run.folder / name.format(id=record.id)
    path.unlink()
    found = contrastive(run)
    assert found.state == "missing"
    assert found.missing == [f"{path} is missing"]


@pytest.mark.parametrize("name", ["per_query/{id}.npz", "checkpoints/{id}/best.safetensors"])
def test_a_file_cut_in_half_is_named(name, run, record):
    path = run.folder / name.format(id=record.id)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = contrastive(run)
    assert found.state == "differs"
    assert str(path) in found.differs[0]


def test_data_that_are_not_those_of_the_row(run, record):
    rewrite(run, record, data=record.data.model_copy(update={"index_fingerprint": "0" * 64}))
    found = contrastive(run)
    assert found.state == "missing"
    assert "the data differ from those of the record" in found.missing[0]


def test_missing_data_are_reported(run, record, monkeypatch):
    from harness.data import datasets

    def refuse(*args):
        raise datasets.DatasetError(
            "dataset 'cub200' reads your own copy: say where it is with --data FOLDER (data=… in Python)"
        )

    monkeypatch.setattr("harness.training.bench.open_dataset", refuse)
    found = contrastive(run)
    assert (found.state, len(found.matches)) == ("missing", 2)
    assert "say where it is" in found.missing[0]


def test_unfair_data_do_not_stop_the_verification(run, record, monkeypatch):
    """Such as a copy of a benchmark that has become another one, or classes that make no folds any more."""

    def unfair(*_):
        raise Unfair("FAIR-02 3 classes in both validation and test")

    monkeypatch.setattr(Bench, "of", unfair)
    message = "the weights have the recorded digest, but were not run: FAIR-02 3 classes in both validation and test"
    assert contrastive(run).missing == [message]


def test_nothing_kept(make_trial, make_record, tmp_path):
    run = Run(tmp_path)
    trial = make_trial().model_copy(update={"keep": "none"})
    run.finish(make_record(trial))
    (found,) = verify(run)
    assert (found.state, str(found)) == ("missing", "nothing was kept (keep: none)")


def test_queries_against_a_gallery(make_trial, make_record, tmp_path):
    rng, run = np.random.default_rng(0), Run(tmp_path)
    labels, roles = np.repeat(np.arange(10), 6), np.array(["query", "query", "gallery"] * 20)
    embeddings = np.eye(10)[labels] + 0.6 * rng.standard_normal((60, 10))
    ids = np.array([f"{i}.jpg" for i in range(60)])
    result = score_test(embeddings, labels, ids, roles, (1, 5))
    record = make_record(make_trial(), test=result.values)
    run.finish(record.model_copy(update={"data": record.data.model_copy(update={"test_queries": 40})}))
    outcomes = {f"query {name}": values for name, values in result.per_query.items()}
    stored = embeddings.astype(np.float16)
    run.keep_queries(record.trial, embeddings=stored, labels=labels, ids=ids, roles=roles, **outcomes)
    (found,) = verify(run)
    assert found.state == "matches", str(found)


def test_rounding_moves_a_value_by_half_a_step_at_most():
    values = np.array([[1.0, 0.5, -0.3, 1e-4]] * 1000, np.float16)
    moved = _moved(values) - values.astype(np.float32)
    half = np.array([2**-11, 2**-12, 2**-13, 2**-25])
    assert (np.abs(moved) <= half * 1.001).all()
    assert np.abs(moved).max(axis=0) == pytest.approx(half, rel=0.02)


def test_the_command(run, record, capsys):
    assert main(["verify", str(run.folder), "--only", "contrastive"]) == 0
    assert "matching records: 1 of 1" in capsys.readouterr().out
    rewrite(run, record, test={**record.test, "R@1": 0.9})
    assert main(["verify", str(run.folder)]) == 1
    assert "matching records: 1 of 2" in capsys.readouterr().out
    assert main(["verify", str(run.folder), "--only", "proxy"]) == 2
    assert "no record with" in capsys.readouterr().err
