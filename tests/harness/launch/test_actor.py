"""The process that runs trials: its log, its reports, and what it releases after an error."""

import math
import os

import pytest

from harness.audit import audit
from harness.config import Backbone, Choice
from harness.launch import environment
from harness.runs import patience
from harness.runs.run import Run
from harness.training.trial import Sources
from tests.harness.pictures import class_folders


def set_up(spec, sources):
    """Return an actor as Tune sets it up, without Ray."""
    environment.prepare(None)
    from harness.launch import actor

    worker = actor.TrialActor.__new__(actor.TrialActor)
    worker.setup({"spec": spec, "sources": sources, "epoch_timeout_s": 600.0})
    return worker


def test_what_a_crashing_process_writes_is_in_the_log_of_its_trial(tmp_path, make_trial, capfd):
    """Libraries and the interpreter write to the descriptor itself, which is restored afterwards."""
    environment.prepare(None)
    from harness.launch.actor import Log

    run, trial = Run(tmp_path), make_trial()
    run.prepare()
    log = Log(run, trial)
    log.write("begins")
    os.write(2, b"terminate called without an active exception\n")
    log.close()
    os.write(2, b"of another trial\n")
    begins, crash = run.log_path(trial.id).read_text().splitlines()
    assert begins.endswith("  begins")
    assert crash == "terminate called without an active exception"
    assert capfd.readouterr().err == "of another trial\n"


@pytest.fixture
def work(tmp_path, make_trial, monkeypatch):
    """Run a trial with these changes in an actor, on a folder of images, without Ray; return its reports."""
    environment.prepare(None)
    from harness.launch import actor

    here = {"node": "n", "name": "here", "gpus": "", "pid": os.getpid()}
    monkeypatch.setattr(actor, "_where", lambda share: here)
    data, run = class_folders(tmp_path / "data", classes=12, images=4), Run(tmp_path / "run")
    run.prepare()

    def work(**changes):
        trial = make_trial(epochs=1, batch_size=6, examples_per_class=2)
        trial = trial.model_copy(update={"dataset": Choice(name="folder"), **changes})
        spec = {
            "id": trial.id,
            "trial": trial.model_dump_json(),
            "attempt": 1,
            "share": 0.0,
            "ranks": 1,
            "processors": 1,
        }
        worker = set_up(spec, Sources(run.address, data, tmp_path / "cache"))
        assert worker.step() == here
        reports = [worker.step()]
        while not reports[-1].get("done"):
            reports.append(worker.step())
        return reports, trial, run

    return work


def test_a_refused_trial_ends_and_is_in_the_audit(work, tmp_path):
    (file := tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    reports, trial, run = work(backbone=Backbone(name="test_resnet", pretrained=str(file)))
    assert reports == [{"done": True, "failed": "refused"}]
    failure = run.failure(trial)
    assert (failure.kind, failure.attempts) == ("refused", 1)
    (found,) = [finding for finding in audit(run) if finding.rule == "FAIR-20"]
    assert found.sentence.startswith("FAIR-20 folder/test_resnet/contrastive: failed (ModelError: ")
    assert "w.safetensors" in found.sentence
    assert "Traceback" in run.log(trial.id)


@pytest.mark.parametrize(
    ("changes", "metric", "validated"),
    [
        ({"ks": (2, 3)}, "R@2", True),
        ({"protocol": "search"}, "validation MAP@R", True),
        ({"protocol": "paper"}, "R@1", False),
    ],
)
def test_an_actor_reports_the_scores_that_exist(work, changes, metric, validated):
    (epoch, end), trial, run = work(**changes)
    record = run.record(trial)
    scores = record.test or {f"validation {name}": value for name, value in record.validation.items()}
    assert (end["metric"], end["score"]) == (metric, scores[metric])
    assert math.isnan(epoch["score"]) is not validated
    assert "nan" not in run.log(trial.id)


@pytest.mark.parametrize("fails", ["_where", "steps", "packing.keep_to"])
def test_an_attempt_that_fails_before_its_first_epoch_restores_standard_error(
    tmp_path, make_trial, monkeypatch, capfd, fails
):
    """An error between opening the log and the first epoch is in the log, which is closed."""
    environment.prepare(None)
    from harness.launch import actor

    def fail(*given):
        raise RuntimeError("no such device")

    monkeypatch.setattr(actor, "_where", lambda share: {"name": "here"})
    monkeypatch.setattr(f"harness.launch.actor.{fails}", fail)
    run, trial = Run(tmp_path), make_trial()
    run.prepare()
    spec = {"id": trial.id, "trial": trial.model_dump_json(), "attempt": 1, "share": 0.5, "ranks": 1, "processors": 1}
    monkeypatch.setattr(actor.packing, "keep_to", actor.packing.keep_to if fails == "packing.keep_to" else print)
    worker = set_up(spec, Sources(run.address))
    with pytest.raises(RuntimeError, match="no such device"):
        worker.step()
    os.write(2, b"of another trial\n")
    assert capfd.readouterr().err == "of another trial\n"
    assert "RuntimeError: no such device" in run.log(trial.id)
    assert patience.on_pause == []
    worker.cleanup()
