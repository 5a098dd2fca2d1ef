"""FAIR-03, 04, 05: the test is read once, chooses nothing, and is read for the chosen checkpoint."""

import pytest

from harness.fairness import rules
from harness.runs.record import Epoch


def test_a_second_checkpoint_of_a_cell_is_marked(make_clean, ledger_of, finds):
    record = make_clean("multi_similarity+embedding", seed=1)
    ledger = ledger_of([record, record])
    assert finds(3, [record], ledger=ledger) == []
    ledger = ledger_of([make_clean("multi_similarity+embedding", seed=1, origin={"tested_weights": "others"})])
    sentence = "FAIR-03 test read twice for glyphs/test_resnet/multi_similarity+embedding seed 1."
    assert finds(3, [record], ledger=ledger) == [("W", sentence)]
    assert finds(3, [make_clean("multi_similarity+embedding", seed=1, test_checkpoints=2)]) == [("W", sentence)]


def test_a_protocol_that_watches_the_test_reads_it_every_epoch(make_trial, make_clean, finds):
    trial = make_trial().model_copy(update={"protocol": "paper"})
    watching = {"trial": trial, "protocol": {"name": "paper", "version": 1}, "test_checkpoints": 2}
    assert finds(3, [make_clean(**watching)]) == []


def test_a_read_outside_the_ledger(make_clean, ledger_of, finds):
    records = [make_clean(seed=seed) for seed in (0, 1)]
    (found,) = finds(3, records, ledger=ledger_of(records[:1]))
    assert found == ("E", f"FAIR-03 the ledger has no test read for 1 record: {records[1].id}.")
    assert finds(3, records) == []


def test_a_ledger_with_a_truncated_line(make_clean, ledger_of, finds):
    record = make_clean()
    ledger = ledger_of([record])
    with ledger.path.open("a") as file:
        file.write('{"cell": "gly')
    assert finds(3, [record], ledger=ledger) == [("W", "FAIR-03 ledger.jsonl: line 2 cannot be read.")]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"selection": {"metric": "test/R@1"}}, "selection.metric = test/R@1"),
        ({"training": {"early_stop": "test_map@r"}}, "training.early_stop = test_map@r"),
        ({"search": [{"goal": "test loss"}]}, "search.goal = test loss"),
    ],
)
def test_a_setting_that_names_a_test_metric(settings, named):
    (finding,) = rules.over_grid(settings)
    assert (finding.severity, finding.sentence) == ("E", f"FAIR-04 {named}. Use val/R@1 or val/MAP@R.")


def test_settings_that_only_look_like_test_metrics():
    settings = {"selection": {"metric": "val/R@1"}, "backbones": ["test_resnet", {"name": "test_vit"}], "seeds": [0]}
    assert rules.over_grid(settings) == ()


def test_another_epoch_than_validation_chooses(make_clean, finds):
    record = make_clean(selected_epoch=1, validation={"R@1": 0.1, "MAP@R": 0.1}, origin={"tested_epoch": 1})
    assert finds(4, [record]) == [
        ("E", f"FAIR-04 {record.id}: epoch 1 is reported, validation MAP@R chooses 2."),
    ]
    assert finds(5, [record]) == []


def test_the_paper_protocol_reports_the_last_epoch(make_trial, make_clean, finds):
    trial = make_trial().model_copy(update={"protocol": "paper"})
    paper = {"trial": trial, "protocol": {"name": "paper", "version": 1}}
    assert finds(4, [make_clean(**paper)]) == []
    early = make_clean(**paper, selected_epoch=1)
    assert finds(4, [early]) == [("E", f"FAIR-04 {early.id}: epoch 1 is reported, the last epoch chooses 2.")]


def test_test_scores_in_a_curve_and_in_a_search(make_trial, make_clean, finds):
    curve = (Epoch(epoch=1, loss=1, lr=1, validation={"test/R@1": 0.3, "MAP@R": 0.1}, train_s=1, validation_s=1),)
    record = make_clean(curve=curve, selected_epoch=1)
    assert finds(4, [record]) == [("E", f"FAIR-04 {record.id}: its validation curve contains test scores.")]
    curve = (curve[0].model_copy(update={"validation": {"R@1": 0.3}}),)
    record = make_clean(curve=curve, selected_epoch=1)
    assert finds(4, [record]) == [
        ("E", f"FAIR-04 {record.id}: its curve lacks validation MAP@R, which chooses the epoch.")
    ]
    trial = make_trial().model_copy(update={"protocol": "search"})
    record = make_clean(trial=trial, protocol={"name": "search", "version": 1})
    assert finds(4, [record]) == [("E", f"FAIR-04 {record.id}: a trial of a search has test scores.")]
    assert finds(4, [record.model_copy(update={"test": {}})]) == []


def test_scores_of_two_checkpoints(make_clean, finds):
    record = make_clean(origin={"tested_epoch": 1})
    assert finds(5, [record]) == [("E", f"FAIR-05 {record.id}: the test was read at epoch 1, epoch 2 was chosen.")]
    record = make_clean(validation={"R@1": 0.1, "MAP@R": 0.1})
    assert finds(5, [record]) == [
        ("E", f"FAIR-05 {record.id}: validation MAP@R is from epoch 1, epoch 2 was chosen.")
    ]


def test_scores_that_no_checkpoint_can_have(make_clean, finds):
    record = make_clean(test={"R@10": 0.55, "R@2": 0.6, "R@1": 0.5, "MAP@R": 0.4, "R-Precision": 0.3})
    assert [sentence.removeprefix(f"FAIR-05 {record.id}: ") for _, sentence in finds(5, [record])] == [
        "test R@2 = 0.6000 is above R@10 = 0.5500, which no single checkpoint can score.",
        "test MAP@R = 0.4000 is above R-Precision = 0.3000, which no single checkpoint can score.",
    ]
