"""Search: equal budgets, defaults first, equal proposals for equal scores, no change while it runs."""

import json
import math

import pytest

import baselines
from harness import registry
from harness.audit import studies
from harness.config import Search
from harness.fairness import rules
from harness.launch.plan import no_form_reason
from harness.launch.search import space, tune
from harness.leaderboard.compose import board_of
from harness.runs.errors import RunError
from harness.runs.run import Run
from harness.training.criterion import build_criterion
from metrix import levels

SETTINGS = Search(trials=6, round_of=2, search_seed=99)


@pytest.fixture
def searched(make_trial, make_record, tmp_path):
    """Tune two arms against a made-up validation score that prefers lr = 3e-3 and fails for lr above 8e-3.

    Of two folds the second scores 1 more; then only it fails.
    """

    def searched(settings=SETTINGS, folder=tmp_path, stop_after=math.inf, folds=None):
        run, tried = Run(folder), []
        run.prepare()

        def execute(batch):
            for trial in batch:
                tried.append(trial)
                if run.record(trial) is None and (trial.training.lr < 8e-3 or trial.fold == 1):
                    score = -abs(math.log(trial.training.lr / 3e-3)) + (trial.fold == 2)
                    run.finish(make_record(trial, validation={"MAP@R": score, "R@1": 0.0}))
            return len(tried) < stop_after

        arms = [make_trial(arm, seed) for seed in (0, 1) for arm in ("contrastive", "contrastive+embedding")]
        wholes = [trial.model_copy(update={"folds": folds}) for trial in (*arms, make_trial("untrained"))]
        return tune([trial for whole in wholes for trial in whole.each_fold()], settings, run, execute), tried, run

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


def test_a_proposal_runs_on_every_fold_and_its_score_is_their_mean(searched):
    settings = SETTINGS.model_copy(update={"lr_range": (0.1, 100.0)})
    final, tried, run = searched(settings, folds=2)
    own = [trial for trial in tried if trial.arm.label == "contrastive"]
    assert [trial.fold for trial in own] == [1, 2] * 6
    assert len({trial.whole.id for trial in own}) == 6, "the budget counts proposals"
    rates = [trial.training.lr for trial in own[::2]]
    assert max(rates) > 8e-3, "one of them failed on its second fold"
    best = min((lr for lr in rates if lr < 8e-3), key=lambda lr: abs(math.log(lr / 3e-3)))
    assert {trial.training.lr for trial in final if trial.arm.label == "contrastive"} == {best}
    study = json.loads((run.folder / "study.json").read_text())["glyphs/test_resnet/contrastive"]
    assert study["best"] == pytest.approx(0.5 - abs(math.log(best / 3e-3)))
    assert (study["trials"], study["folds"]) == (6, 2)
    assert [trial.fold for trial in final] == [1, 2] * 5
    searches = [trial for trial in tried if run.record(trial) is None]
    assert {trial.fold for trial in searches} == {2}
    with pytest.raises(RunError, match="FAIR-09"):
        searched(settings)


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


def test_the_defaults_are_chosen_if_every_trial_fails(make_trial, tmp_path):
    run = Run(tmp_path)
    run.prepare()
    (final,) = tune([make_trial()], SETTINGS, run, lambda batch: True)
    assert (final.training.lr, final.arm.options["margin"]) == (1e-3, 0.5)


def rising(tmp_path, make_record, trials, settings=SETTINGS):
    """Tune `trials` against scores that rise from proposal to proposal: the last is the best."""
    run, tried = Run(tmp_path / "search"), []
    run.prepare()

    def execute(batch):
        for trial in batch:
            tried.append(trial)
            if run.record(trial) is None:
                run.finish(make_record(trial, validation={"MAP@R": len(tried) / 1000}))
        return True

    return tune(trials, settings, run, execute), tried, run


@pytest.mark.parametrize("level", ["baseline", *levels.names(), "xbm+embedding"])
@pytest.mark.parametrize("loss", baselines.names())
def test_every_loss_is_searched_at_every_level(tmp_path, make_trial, make_record, loss, level):
    """Without training: proposed, built, recorded, chosen, checked by the rules and shown in a table."""
    first = make_trial(loss if level == "baseline" else f"{loss}+{level}")
    if reason := no_form_reason(first):
        assert first.arm.levels, reason
        return
    final, tried, run = rising(tmp_path, make_record, [first])
    declared = space(first, SETTINGS)
    assert len({trial.id for trial in tried}) == 6
    assert tried[0].arm.options == first.arm.options, "the first proposal is the arm as it is"
    for trial in tried:
        build_criterion(trial, num_classes=5, images=100)
        for name, values in declared.items():
            if name.startswith("loss.") and "choices" in values:
                assert trial.arm.options[name.removeprefix("loss.")] in values["choices"]
    assert (final[0].arm.options, final[0].training.lr) == (tried[-1].arm.options, tried[-1].training.lr)
    assert (final[0].arm.rival, final[0].arm.metrix) == (tried[-1].arm.rival, tried[-1].arm.metrix)
    assert {name.partition(".")[0] for name in declared} - {"lr", "loss"} == {
        *(["metrix"] if first.arm.metrix else []),
        *(["rival"] if first.arm.rival and registry.level(first.arm.rival.at).search_space else []),
    }
    again, repeated, _ = rising(tmp_path, make_record, [first])
    assert again == final
    assert [trial.id for trial in repeated] == [trial.id for trial in tried]
    tested = [make_record(final[0].model_copy(update={"protocol": "tuned"}))]
    found = rules.over_studies(tuple(studies(run, run.records(), tested)))
    assert {finding.rule for finding in found} <= {"FAIR-10"}, found
    (block,) = board_of(tested).blocks
    assert first.arm.label in [row.arm for row in block.rows]


def test_choices_are_all_tried_and_the_chosen_one_is_kept_as_it_is(tmp_path, make_trial, make_record):
    settings = Search(trials=24, round_of=24)
    (final,), tried, run = rising(tmp_path, make_record, [make_trial("soft_triple")], settings)
    assert {trial.arm.options["centres"] for trial in tried} == {2, 5, 10}
    study = json.loads((run.folder / "study.json").read_text())["glyphs/test_resnet/soft_triple"]
    assert study["space"]["loss.centres"] == {"choices": [2, 5, 10]}
    assert study["chosen"]["loss.centres"] == final.arm.options["centres"] == tried[-1].arm.options["centres"]


def test_an_arm_outside_the_space_still_runs_first(tmp_path, make_trial, make_record):
    arms = ["soft_triple[centres=3]", "contrastive[margin=1.5]"]
    _, tried, run = rising(tmp_path, make_record, [make_trial(arm) for arm in arms])
    firsts = {trial.arm.label: trial.arm.options for trial in reversed(tried)}
    assert firsts["soft_triple[centres=3]"]["centres"] == 3
    assert firsts["contrastive[margin=1.5]"]["margin"] == 1.5
    declared = json.loads((run.folder / "study.json").read_text())
    assert declared["glyphs/test_resnet/soft_triple[centres=3]"]["space"]["loss.centres"] == {
        "choices": [2, 5, 10, 3]
    }
