"""The audit of whole run folders: a finished run, a tuned one, one that was tampered with, the command."""

import json

import numpy as np
import pytest

from harness.audit import as_table, audit, studies
from harness.cli import main
from harness.config import Choice
from harness.fairness.ledger import Ledger
from harness.fairness.rules import over_tables
from harness.grid import Grid
from harness.leaderboard import compose
from harness.runs.record import write_json
from harness.runs.run import Run
from harness.training.trial import run_trial

SPACE = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "loss.margin": {"low": 0.0, "high": 0.9}}


@pytest.fixture
def finish(make_trial, make_record, tmp_path):
    """Write records with complete provenance into a run folder, their reads into its ledger."""
    run = Run(tmp_path / "run")
    run.prepare()

    def finish(arm="contrastive", seed=0, folder=run, **changes):
        trial = changes.pop("trial", None) or make_trial(arm, seed)
        record = make_record(trial, **changes)
        origin = {"packages": {"torch": "2"}, "device": "cpu", "driver": None, "evaluator": "e" * 64}
        origin |= {"revision": "a" * 40, "uncommitted": None, "initial_weights": "w", "tested_weights": trial.id}
        record = record.model_copy(update={"provenance": origin})
        folder.finish(record)
        cell = "/".join((*trial.cell, trial.repetition))
        if record.test:
            Ledger(folder.ledger).read(cell, trial.id, record.data.split_fingerprint, "e" * 64)
        return record

    finish.run = run  # pyright: ignore[reportFunctionMemberAccess] (the run that it writes)
    return finish


def test_a_clean_run_passes(finish, capsys):
    rng = np.random.default_rng(0)
    for seed in range(5):
        finish(seed=seed, score=0.3 + 0.01 * rng.random())
        finish("contrastive+embedding", seed, score=0.5 + 0.01 * rng.random())
    assert audit(finish.run) == ()
    assert main(["audit", str(finish.run.folder)]) == 0
    assert "0 errors, 0 warnings of 26 rules" in capsys.readouterr().out


def test_a_real_trial_passes_except_for_its_few_seeds(make_trial, tmp_path):
    """What the rules read is what trials write; the code of this checkout may have changes of its own."""
    trial = make_trial("contrastive+embedding").model_copy(
        update={"dataset": Choice(name="glyphs", options={"classes": 16})}
    )
    run_trial(trial, tmp_path)
    said = [f.sentence for f in audit(Run(tmp_path)) if "uncommitted" not in f.sentence]
    assert said == ["FAIR-11 glyphs/test_resnet n=1: printed without an interval."]


def test_errors_and_warnings_by_rule(finish, capsys):
    finish()
    broken = finish("contrastive+embedding", selected_epoch=1)
    found = audit(finish.run)
    assert [(f.rule, f.severity) for f in found] == [
        ("FAIR-04", "E"),
        ("FAIR-05", "E"),
        ("FAIR-11", "W"),
    ]
    assert {id for f in found if f.severity == "E" for id in f.records} == {broken.id}
    assert main(["audit", str(finish.run.folder)]) == 1
    printed = capsys.readouterr().out
    assert "\nFAIR-04  No test metric controls" in printed
    assert f"  E  FAIR-04 {broken.id}: epoch 1 is reported, validation MAP@R chooses 2." in printed
    assert "2 errors, 1 warning of 26 rules" in printed


def test_what_was_planned_and_did_not_run(finish, make_trial):
    finish()
    grid = Grid.model_validate(
        {
            "name": "g",
            "datasets": ["glyphs"],
            "backbones": ["test_resnet"],
            "losses": ["nca"],
            "floors": [],
            "seeds": [0],
        }
    )
    finish.run.remember(grid, grid.trials(), [])
    said = [f.sentence for f in audit(finish.run) if f.rule == "FAIR-20"]
    assert "FAIR-20 glyphs/test_resnet/nca: not run, seed 0." in said
    assert len(said) == 4


def tuned(finish, make_trial, chosen, settings=("contrastive",), folds=None):
    """Two search trials and a final one with margin 0.5, on each fold, and what the study declares and chose."""
    search = Run(finish.run.folder / "search")
    search.prepare()
    write_json(
        search.folder / "study.json",
        {
            f"glyphs/test_resnet/{arm}": {"space": SPACE, "trials": trials, "seed": 99, "chosen": chosen}
            for arm, trials in dict(settings).items()
        },
    )
    for arm in dict(settings):
        base = make_trial(arm).model_copy(update={"folds": folds})
        arm_of = base.arm.model_copy(update={"tuned": arm})
        for lr in (1e-3, 2e-3):
            training = base.training.model_copy(update={"lr": lr})
            trial = base.model_copy(update={"protocol": "search", "seed": 99, "arm": arm_of, "training": training})
            for fold in trial.each_fold():
                finish(trial=fold, folder=search, test={}, protocol={"name": "search", "version": 1})
        trial = base.model_copy(update={"protocol": "tuned", "arm": arm_of})
        for fold in trial.each_fold():
            finish(trial=fold, protocol={"name": "tuned", "version": 1})
    return search


def test_a_search_is_read_from_what_it_left(finish, make_trial):
    chosen = {"lr": 1e-3, "loss.margin": 0.5}
    search = tuned(finish, make_trial, chosen, {"contrastive": 2})
    (study,) = studies(search, search.records(), finish.run.records())
    assert (study.place, study.arm, study.trials, study.made) == ("glyphs/test_resnet", "contrastive", 2, 2)
    assert study.defaults == {"loss.margin": 0.5}
    assert sorted(s["lr"] for s in study.tried) == [1e-3, 2e-3]
    assert list(study.used) == [chosen]
    assert [f.rule for f in audit(finish.run)] == ["FAIR-11"]


def test_a_search_over_folds_counts_proposals(finish, make_trial):
    chosen = {"lr": 1e-3, "loss.margin": 0.5}
    search = tuned(finish, make_trial, chosen, {"contrastive": 2}, folds=2)
    (study,) = studies(search, search.records(), finish.run.records())
    assert (len(search.records()), study.trials, study.made, len(study.tried)) == (4, 2, 2, 2)
    assert list(study.used) == [chosen, chosen]
    assert [f.rule for f in audit(finish.run)] == ["FAIR-11"]
    (study,) = studies(search, search.records()[1:], finish.run.records())
    assert study.made == 1, "a proposal has ended when all its folds have"


def test_unequal_searches_and_settings_nobody_chose(finish, make_trial):
    tuned(finish, make_trial, {"lr": 1e-3, "loss.margin": 0.9}, {"contrastive": 2, "contrastive+embedding": 5})
    said = {f.sentence for f in audit(finish.run) if f.rule in ("FAIR-06", "FAIR-09", "FAIR-10")}
    place = "glyphs/test_resnet"
    arms = ("contrastive", "contrastive+embedding")
    assert said == {
        f"FAIR-06 {place}: contrastive: 2 trials, contrastive+embedding: 5.",
        f"FAIR-06 {place}/contrastive+embedding: settings chosen after 2 of 5 trials.",
        *(f"FAIR-09 {place}/{arm}: loss.margin = 0.5 was used, but the search chose 0.9." for arm in arms),
        *(f"FAIR-10 {place}/{arm}: loss.margin = 0.9 at the upper bound 0.9." for arm in arms),
    }


def test_tuned_rows_without_a_search(finish, make_trial):
    finish(trial=make_trial().model_copy(update={"protocol": "tuned"}), protocol={"name": "tuned", "version": 1})
    said = [f.sentence for f in audit(finish.run) if f.severity == "E"]
    assert said == ["FAIR-09 glyphs/test_resnet/contrastive: no search space was declared."]


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_marks_of_the_leaderboard_are_those_of_the_tests(spread, make_trial, make_record):
    """Bold, as the tables set it, stands up to tests made once more; where all seeds agree, too."""
    rng = np.random.default_rng(1)
    means = {"contrastive": 0.5, "proxy_anchor": 0.51, "nca": 0.505, "multi_similarity": 0.3}
    records = [
        make_record(make_trial(arm, seed), score=mean + spread * rng.standard_normal())
        for arm, mean in means.items()
        for seed in range(6)
    ]
    (block,) = compose.board_of(records).blocks
    table = as_table(block, {record.id: record for record in records})
    bold = {number.row for number in table.numbers if number.bold and number.column.endswith("R@1")}
    assert bold == ({"proxy_anchor"} if spread == 0 else {"contrastive", "proxy_anchor", "nca"})
    found = [f.sentence for f in over_tables([table])]
    assert len(found) == (0 if spread == 0 else 4), "one for each metric with rows that are not separable"
    assert all("not separable (Holm, 0.05)." in sentence for sentence in found)


def test_the_list_of_rules(capsys):
    assert main(["audit", "--rules"]) == 0
    printed = capsys.readouterr().out
    assert all(f"FAIR-{n:02}" in printed for n in range(1, 27))
    assert "describes a model that does not exist" in printed


def test_a_folder_is_needed(tmp_path, capsys):
    assert main(["audit"]) == 2
    assert "audit needs a run folder, or --rules" in capsys.readouterr().err
    assert main(["audit", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_study_file_from_an_interrupted_search(finish, make_trial):
    search = tuned(finish, make_trial, {"lr": 1e-3, "loss.margin": 0.5}, {"contrastive": 9})
    content = json.loads((search.folder / "study.json").read_text())
    for about in content.values():
        del about["chosen"]
    write_json(search.folder / "study.json", content)
    assert not [f for f in audit(finish.run) if f.severity == "E"]
