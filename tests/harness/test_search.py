"""Search: equal budgets, the defaults first, the same proposals for the same scores, nothing changed on the way."""

import math

import pytest

from harness.config import Search
from harness.record import Run, RunError
from harness.search import space, tune

SETTINGS = Search(trials=6, round_of=2, search_seed=99)


@pytest.fixture
def searched(make_trial, make_record, tmp_path):
    """Tune two arms against a made-up validation score that prefers lr = 3e-3 and fails for lr above 8e-3."""

    def searched(settings=SETTINGS, folder=tmp_path, stop_after=math.inf):
        run, tried = Run(folder), []
        run.prepare()

        def execute(batch):
            for trial in batch:
                tried.append(trial)
                if run.record(trial) is None and trial.training.lr < 8e-3:
                    score = -abs(math.log(trial.training.lr / 3e-3))
                    run.finish(make_record(trial, validation={"MAP@R": score, "R@1": 0.0}))
            return len(tried) < stop_after

        arms = [make_trial(arm, seed) for seed in (0, 1) for arm in ("contrastive", "contrastive+embedding")]
        return tune([*arms, make_trial("untrained")], settings, run, execute), tried, run

    return searched


def test_every_arm_gets_the_same_number_of_trials_and_the_defaults_first(searched):
    final, tried, _ = searched()
    for arm in ("contrastive", "contrastive+embedding"):
        own = [trial for trial in tried if trial.arm.label == arm]
        assert len(own) == len({trial.id for trial in own}) == 6
        assert own[0].training.lr == 1e-3
        assert own[0].arm.options["margin"] == 0.5
        assert {(trial.protocol, trial.seed) for trial in own} == {("search", 99)}
    assert [(trial.arm.label, trial.seed) for trial in final] == [
        ("untrained", 0),
        ("contrastive", 0),
        ("contrastive+embedding", 0),
        ("contrastive", 1),
        ("contrastive+embedding", 1),
    ]


def test_the_highest_validation_score_is_chosen_for_all_seeds(searched):
    final, tried, _ = searched()
    own = [trial.training.lr for trial in tried if trial.arm.label == "contrastive"]
    best = min((lr for lr in own if lr < 8e-3), key=lambda lr: abs(math.log(lr / 3e-3)))
    assert {trial.training.lr for trial in final if trial.arm.label == "contrastive"} == {best}
    assert {trial.arm.baseline for trial in final if trial.arm.metrix} == {"contrastive"}


def test_proposals_stay_in_the_declared_space(searched, make_trial):
    _, tried, _ = searched()
    declared = space(make_trial("contrastive+embedding"), SETTINGS)
    assert declared["lr"] == {"low": 1e-4, "high": 1e-2, "log": True}
    assert declared["metrix.weight"] == {"low": 0.05, "high": 1.0, "log": True}
    for trial in tried:
        assert 1e-4 <= trial.training.lr <= 1e-2
        assert declared["loss.margin"]["low"] <= trial.arm.options["margin"] <= declared["loss.margin"]["high"]


def test_an_interrupted_search_continues_with_the_same_proposals(searched, tmp_path):
    whole, tried, _ = searched(folder=tmp_path / "whole")
    nothing, _, _ = searched(folder=tmp_path / "parts", stop_after=8)
    assert nothing == []
    again, repeated, run = searched(folder=tmp_path / "parts")
    assert again == whole
    assert [trial.id for trial in repeated] == [trial.id for trial in tried]
    assert len(run.records()) == len({t.id for t in tried if t.training.lr < 8e-3})


def test_a_declared_space_is_not_changed(searched):
    searched()
    with pytest.raises(RunError, match=r"FAIR-09 .* declares another search for glyphs/test_resnet/contrastive"):
        searched(SETTINGS.model_copy(update={"lr_range": (0.01, 10.0)}))


def test_where_every_trial_fails_the_defaults_stand(make_trial, tmp_path):
    run = Run(tmp_path)
    run.prepare()
    (final,) = tune([make_trial()], SETTINGS, run, lambda batch: True)
    assert (final.training.lr, final.arm.options["margin"]) == (1e-3, 0.5)
