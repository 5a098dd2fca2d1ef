"""Folds into seeds, by hand: means of scores, sums of costs, and no score where a fold is missing or has failed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config import Choice
from harness.fairness.comparability import conflicts
from harness.fairness.rules import over_records
from harness.leaderboard import captions
from harness.leaderboard.collection import collect, trace
from harness.leaderboard.compose import board_of
from harness.leaderboard.variance import by_seed as values_by_seed
from harness.reports.gallery import with_gallery
from harness.runs import outcomes
from harness.runs.folds import by_seed, named
from harness.runs.record import Cost, Failure
from harness.runs.run import Run
from harness.training.bench import splits_of
from harness.training.pictures import open_dataset
from harness.verify import verify

ARM, VARIANT = "contrastive", "contrastive+input"


@pytest.fixture
def fold_of(make_trial):
    """Fold `fold` of 2 of an arm and seed."""

    def fold_of(fold, arm=ARM, seed=0, folds=2):
        return make_trial(arm, seed).model_copy(update={"fold": fold, "folds": folds})

    return fold_of


@pytest.fixture
def series(fold_of, make_record):
    """Records of one arm: for each seed the scores of its folds."""

    def series(arm, scores, **changes):
        return [
            make_record(fold_of(fold, arm, seed), score, **changes)
            for seed, of_folds in scores.items()
            for fold, score in enumerate(of_folds, 1)
        ]

    return series


@pytest.fixture
def fail():
    def fail(trial, reason="CUDA out of memory", kind="out of memory", attempts=3):
        content = {"kind": kind, "reason": reason, "attempts": attempts, "finished": "now"}
        return Failure(id=trial.id, trial=trial, arm=trial.arm.label, **content)

    return fail


def scores_of(found):
    return values_by_seed(found.values_by_seed)


def cell(board, arm=ARM) -> Any:
    return board.blocks[0].cell(row(board, arm), "R@1")


def row(board, arm=ARM):
    (block,) = board.blocks
    return next(row for row in block.rows if row.arm == arm)


def test_the_score_of_a_seed_is_the_mean_over_its_folds(series):
    records = series(ARM, {0: (0.3, 0.5), 1: (0.4, 0.6), 2: (0.6, 0.6)})
    records += series(VARIANT, {0: (0.4, 0.6), 1: (0.4, 0.7), 2: (0.6, 0.8)})
    board = board_of(records)
    base, variant = cell(board), cell(board, VARIANT)
    assert scores_of(base) == pytest.approx({0: 0.4, 1: 0.5, 2: 0.6})
    assert (base.mean, base.std, base.n) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    assert base.interval == "95 % t-interval over 3 training seeds"
    assert variant.difference == pytest.approx((0.1 + 0.05 + 0.1) / 3)
    assert (board.done, board.total, board.partial) == (12, 12, False)
    messages = " ".join(captions.of_board(board))
    assert "over n = 3 training seeds, each the mean over 2 class-disjoint folds." in messages
    assert board.blocks[0].caption[0].startswith("Data: train 12 images of 6 classes; test 8 images of 4 classes;")


def test_costs_of_folds_add_up_and_memory_is_the_largest(series):
    records = series(ARM, {0: (0.3, 0.5)})
    records[0] = records[0].model_copy(
        update={"cost": Cost(train_s=2, steps=10, images_seen=100, forward_passes_per_step=2.0, peak_gb=3)}
    )
    records[1] = records[1].model_copy(
        update={"cost": Cost(train_s=4, steps=30, images_seen=300, forward_passes_per_step=1.0, peak_gb=1)}
    )
    (seed,) = by_seed(records).records
    cost = seed.cost
    assert (cost.train_s, cost.steps, cost.images_seen, cost.peak_gb) == (6, 40, 400, 3)
    assert cost.forward_passes_per_step == pytest.approx((200 + 300) / 400)
    assert cost.images_per_s == pytest.approx(400 / 6)
    assert (seed.id, seed.folds, seed.curve) == (records[0].trial.whole.id, tuple(records), ())


def test_records_without_folds_are_left_as_they_are(make_trial, make_record):
    records = [make_record(make_trial(seed=seed)) for seed in (1, 0)]
    seeds = by_seed(records)
    assert all(one is other for one, other in zip(seeds.records, records, strict=True))
    assert records[0].parts == (records[0],)
    assert "folds" not in records[0].model_dump()


def test_a_seed_with_a_missing_fold_has_no_score(series, fold_of):
    records = series(ARM, {0: (0.3, 0.5), 1: (0.9,)})
    board = board_of(records, planned=[fold_of(fold, seed=seed) for seed in (0, 1, 2) for fold in (1, 2)])
    found = cell(board)
    assert scores_of(found) == {0: pytest.approx(0.4)}
    assert (found.state, found.seeds, found.expected_seeds) == ("partial", "0", "0 1 2")
    assert found.reason == "missing: seed 1 (fold 2 of 2), 2"
    assert (board.done, board.total, board.partial) == (3, 6, True)
    unplanned = board_of(records)
    assert row(unplanned).reason == "missing: seed 1 (fold 2 of 2)"
    assert (unplanned.done, unplanned.total) == (3, 4)
    messages = [finding.sentence for finding in over_records(records, (), [fold_of(2, seed=1)])]
    assert "FAIR-20 glyphs/test_resnet/contrastive: not run, seed 1 (fold 2 of 2)." in messages


def test_a_seed_with_a_failed_fold_has_failed_with_its_reason(series, fold_of, fail):
    records, lost = series(ARM, {0: (0.3, 0.5), 1: (0.9,)}), fail(fold_of(2, seed=1))
    found = row(board_of(records, [lost]))
    assert (found.seeds, found.state) == ("0", "partial")
    assert found.reason == "seed 1 failed 3x (out of memory: fold 2 of 2: CUDA out of memory)"
    messages = [finding.sentence for finding in over_records(records, [lost])]
    assert "FAIR-20 glyphs/test_resnet/contrastive: failed 3x (out of memory), seed 1 (fold 2 of 2)." in messages
    later = board_of(series(ARM, {0: (0.3, 0.5), 1: (0.9, 0.7)}), [lost])
    assert scores_of(cell(later)) == pytest.approx({0: 0.4, 1: 0.8}), "it succeeded later"


def test_folds_of_two_evaluators_are_not_averaged(series):
    records = series(ARM, {0: (0.3, 0.5)}, provenance={"evaluator": "one"})
    records[1] = records[1].model_copy(update={"provenance": {"evaluator": "two"}})
    found = row(board_of(records))
    assert (found.state, found.mean) == ("fail", None)
    assert found.reason == "seed 0 failed (unlike folds: they differ in the evaluator)"
    for change, what in (
        ({"provenance": {**records[0].provenance, "initial_weights": "y"}}, "the network's weights"),
        ({"data": records[1].data.model_copy(update={"content_fingerprint": "y"})}, "the data"),
    ):
        other = records[1].model_copy(update={"provenance": records[0].provenance})
        found = row(board_of([records[0], other.model_copy(update=change)]))
        assert found.reason == f"seed 0 failed (unlike folds: they differ in {what})"


def test_a_table_with_folds_is_not_one_without(series, make_trial, make_record):
    plain = [make_record(make_trial(seed=seed)) for seed in (0, 1)]
    folded = series(ARM, {0: (0.3, 0.5)})
    assert [block.factors["folds"] for block in board_of(plain + folded).blocks] == [None, 2]
    assert conflicts(plain, [folded[0].trial]) == ["folds was None and is now 2 (2 records)"]
    assert conflicts(folded, [record.trial for record in folded]) == []
    assert conflicts(folded, [record.trial.model_copy(update={"seed": 1}) for record in folded]) == []


def test_findings_on_a_fold_are_shown_with_its_row(series):
    records = series(ARM, {0: (0.3, 0.5), 1: (0.4, 0.0)}) + series(VARIANT, {0: (0.3, 0.5), 1: (0.4, 0.4)})
    (block,) = board_of(records, findings=over_records(records)).blocks
    (note,) = [note for note in block.findings if note.rule == "FAIR-22"]
    assert note.arms == (ARM,)
    assert "contrastive seed 1 fold 2 of 2: R@1 0.0000 below chance" in note.sentence


def test_rules_count_seeds_and_name_records(series):
    records = series(ARM, dict.fromkeys(range(4), (0.3, 0.5)))
    (few,) = [finding for finding in over_records(records) if finding.rule == "FAIR-11"]
    assert few.sentence == "FAIR-11 glyphs/test_resnet n=4: printed without bold and dagger."
    assert set(few.records) == {record.id for record in records}
    assert not [finding for finding in over_records(records) if finding.rule == "FAIR-08"]


def test_every_record_of_every_fold_is_named(series, tmp_path):
    records = series(ARM, {1: (0.3, 0.5), 0: (0.4, 0.6)})
    run = Run(tmp_path)
    run.prepare()
    for record in records:
        run.finish(record)
    found = collect([tmp_path])
    assert [(seed, scores["R@1"]) for *_, seed, scores, path in trace(found, ARM) if Path(path).is_file()] == [
        (0, 0.4),
        (0, 0.6),
        (1, 0.3),
        (1, 0.5),
    ]
    lines = found.board().scores.query("metric == 'R@1'")
    assert set(lines[["seed", "fold", "folds", "value"]].itertuples(index=False, name=None)) == {
        *((0, 1, 2, 0.4), (0, 2, 2, 0.6), (1, 1, 2, 0.3), (1, 2, 2, 0.5))
    }
    assert [verdict.state for verdict in verify(run)] == ["missing"] * 4, "nothing was kept, and each is looked at"


def test_outcomes_of_queries_are_averaged_over_folds_and_a_gallery_shows_one(series, tmp_path):
    run = Run(tmp_path)
    run.prepare()
    right = {1: np.array([1, 0, 1, 0]), 2: np.array([1, 1, 1, 0])}
    for record in series(ARM, {0: (0.5, 0.75)}):
        kept = {"embeddings": np.eye(4), "ids": np.array(list("abcd")), "labels": np.array([0, 0, 1, 1])}
        run.keep_queries(record.trial, queries=kept["ids"], **kept, **{"query R@1": right[record.trial.fold]})
        run.finish(record)
    found = collect([tmp_path])
    (seed,) = by_seed(found.records).records
    of_seed = outcomes.mean([found.outcomes(part.id, ["R@1"]) for part in seed.parts])
    assert of_seed is not None
    assert of_seed.sums["R@1"].tolist() == [1.5, 1.0]
    assert of_seed.sums["R@1"].sum() / of_seed.counts.sum() == seed.test["R@1"] == 0.625
    assert outcomes.mean([of_seed, None]) is None
    (shelf,) = with_gallery(found.board(), found).gallery
    assert "training seed 0 fold 1 of 2." in shelf.note


def test_folds_in_words(fold_of):
    trials = [fold_of(2, seed=1, folds=3), fold_of(3, seed=1, folds=3), fold_of(1, seed=2, folds=2)]
    assert named(trials) == "1 (folds 2, 3 of 3), 2 (fold 1 of 2)"
    assert named([fold_of(1), fold_of(2), fold_of(1, seed=3).whole]) == "0, 3"


def test_every_split_that_trials_use_is_found_before_they_run(fold_of, make_trial):
    choice = Choice(name="glyphs", options={"classes": 16})
    dataset = open_dataset(choice)
    some = [fold_of(fold, seed=seed) for seed in (0, 1) for fold in (1, 2)]
    validating = [dataset.labels[split == "validation"] for _, split in splits_of(dataset, some)]
    assert [len(np.unique(classes)) for classes in validating] == [8, 8]
    assert len(list(splits_of(dataset, [make_trial(), make_trial(seed=1)]))) == 1
    with pytest.raises(ValueError, match="glyphs: 16 training classes are too few for 9 folds of at least 2 classes"):
        list(splits_of(dataset, [fold_of(1, folds=9)]))
