"""Numbers worked by hand. With three seeds t(0.975, 2) = 4.302653, so half = 2.484138 · std."""

from typing import Any

import pandas
import pytest

from harness.fairness import rules
from harness.leaderboard import captions
from harness.leaderboard.compose import board_of
from harness.reports.wording import footnotes
from harness.runs.record import Cost, Failure

T_OVER_ROOT_3 = 4.302652729911275 / 3**0.5


@pytest.fixture
def series(make_trial, make_record):
    """Records of one arm: scores by seed."""

    def make(arm, scores, changes=None, **training):
        return [
            make_record(make_trial(arm, seed, **training), score, **(changes or {})) for seed, score in scores.items()
        ]

    return make


@pytest.fixture
def fail():
    def make(trial, reason="CUDA out of memory", kind="out of memory", attempts=3):
        return Failure(
            id=trial.id, trial=trial, arm=trial.arm.label, kind=kind, reason=reason, attempts=attempts, finished="now"
        )

    return make


def rows(board, block=0):
    return {row.arm: row for row in board.blocks[block].rows}


def cell(board, arm, metric="R@1") -> Any:
    """The line of an arm and metric in the first block."""
    return board.blocks[0].cell(rows(board)[arm], metric)


BASE = {0: 0.40, 1: 0.50, 2: 0.60}  # mean 0.5, std 0.1


def test_mean_interval_and_paired_difference(series):
    board = board_of(series("contrastive", BASE) + series("contrastive+input", {0: 0.41, 1: 0.53, 2: 0.62}))
    base, variant = cell(board, "contrastive"), cell(board, "contrastive+input")
    assert (base.mean, base.n, base.difference) == (pytest.approx(0.5), 3, None)
    assert base.half == pytest.approx(T_OVER_ROOT_3 * 0.1)
    assert variant.difference == pytest.approx(0.02)  # of 0.01, 0.03, 0.02, whose std is 0.01
    assert variant.difference_half == pytest.approx(T_OVER_ROOT_3 * 0.01)
    assert cell(board, "contrastive+input", "MAP@R").difference == pytest.approx(0.01)


def test_only_common_seeds_make_a_difference(series):
    records = series("contrastive", BASE) + series("contrastive+embedding", {0: 0.42, 1: 0.56, 3: 0.9})
    board = board_of(records)
    row = cell(board, "contrastive+embedding")
    assert row.difference == pytest.approx(0.04)  # of 0.02 and 0.06
    assert (row.difference_seeds, row.difference_half) == ("0 1", None)
    assert (row.seeds, row.expected_seeds, row.state, row.reason) == (
        "0 1 3",
        "0 1 2 3",
        "partial",
        "missing: seed 2",
    )


def test_no_common_seed_makes_no_difference(series):
    board = board_of(series("contrastive", {0: 0.4}) + series("contrastive+input", {1: 0.5}))
    assert cell(board, "contrastive+input").difference is None


@pytest.mark.parametrize("n", [1, 2])
def test_few_seeds_have_no_interval_and_say_so(series, n):
    board = board_of(series("contrastive", {seed: BASE[seed] for seed in range(n)}))
    assert cell(board, "contrastive").half is None
    assert "Test scores in percent: mean over n training seeds (too few for an interval)." in captions.of_board(board)


def test_relative_cost_over_common_seeds(series):
    def cost(train_s, passes):
        return {"cost": Cost(train_s=train_s, steps=5, forward_passes_per_step=passes)}

    base = series("contrastive", {0: 0.4}, cost(10, 1.0)) + series("contrastive", {1: 0.4}, cost(30, 1.0))
    slower = series("contrastive+input", {0: 0.4}, cost(20, 2.0)) + series(
        "contrastive+input", {1: 0.4}, cost(40, 2.0)
    )
    alone = series("contrastive+input", {2: 0.4}, cost(1000, 2.0))
    found = rows(board_of(base + slower + alone))
    assert found["contrastive+input"].relative_time == pytest.approx(60 / 40)
    assert found["contrastive+input"].relative_passes == 2.0
    assert found["contrastive"].train_s == 20
    assert found["contrastive"].relative_time is None


def test_rows_are_grouped_by_loss_and_floors_are_last(series):
    arms = [
        *("untrained", "proxy_anchor+input", "proxy_anchor", "contrastive+input", "contrastive+embedding"),
        *("pixels", "contrastive+feature", "contrastive"),
    ]
    board = board_of(record for arm in arms for record in series(arm, {0: 0.5}))
    assert [(row.name, row.baseline is not None) for row in board.blocks[0].rows] == [
        ("contrastive", False),
        ("+embedding", True),
        ("+feature", True),
        ("+input", True),
        ("proxy_anchor", False),
        ("+input", True),
        ("untrained", False),
        ("pixels", False),
    ]
    assert board.blocks[0].metrics == ("R@1", "MAP@R", "R-Precision", "R@2")
    assert [len(group) for group in board.blocks[0].groups] == [4, 2]
    assert not board.partial


def test_a_missing_baseline_is_a_row(series):
    board = board_of(series("contrastive+input", {0: 0.5, 1: 0.6, 2: 0.7}))
    base, variant = board.blocks[0].rows
    assert (base.arm, base.state, base.n, base.seeds) == ("contrastive", "--", 0, None)
    assert base.reason == "not run: its variants have no difference"
    assert cell(board, variant.arm).mean == pytest.approx(0.6)
    assert cell(board, variant.arm).difference is None


def test_what_failed_or_is_not_run_yet_or_has_no_form_is_a_row(series, make_trial, fail):
    done = series("contrastive", BASE)
    lost = [make_trial("contrastive+input", seed) for seed in BASE]
    waiting = [make_trial("contrastive+feature", seed) for seed in BASE]
    board = board_of(
        done,
        [fail(trial) for trial in lost],
        planned=[record.trial for record in done] + lost + waiting,
        refused=[(make_trial("contrastive+embedding"), "no form at this level")],
    )
    found = rows(board)
    failed = "seed 0, 1, 2 failed 3x (out of memory: CUDA out of memory)"
    assert (found["contrastive+input"].state, found["contrastive+input"].reason) == ("fail", failed)
    assert f"contrastive+input: fail, {failed}." in footnotes(board.blocks[0])
    assert (found["contrastive+feature"].state, found["contrastive+feature"].n) == ("--", 0)
    assert found["contrastive+feature"].expected_seeds == "0 1 2"
    assert (found["contrastive+embedding"].state, found["contrastive+embedding"].reason) == (
        "n/a",
        "no form at this level",
    )
    assert (board.partial, board.done, board.total) == (True, 3, 9)


def test_one_failed_seed_of_three_leaves_the_others(series, make_trial, fail):
    board = board_of(series("contrastive", {0: 0.4, 1: 0.5}), [fail(make_trial(seed=2), "loss is nan", "diverged")])
    row = rows(board)["contrastive"]
    assert (row.state, row.n, row.expected_seeds) == ("partial", 2, "0 1 2")
    assert row.reason == "seed 2 failed 3x (diverged: loss is nan)"


def test_a_trial_that_succeeded_later_has_not_failed(series, fail):
    records = series("contrastive", BASE)
    board = board_of(records, [fail(records[0].trial)])
    assert rows(board)["contrastive"].state == "ok"
    assert not board.partial


def test_a_planned_trial_is_done_by_what_it_is_not_by_its_name(series):
    records = [
        record.model_copy(update={"id": f"named by an older version {place}"})
        for place, record in enumerate(series("contrastive", BASE))
    ]
    board = board_of(records, planned=[record.trial for record in records])
    assert (board.partial, board.done, board.total) == (False, 3, 3)


def test_a_level_is_not_applicable_only_where_its_settings_are_those_of_the_table(series, make_trial):
    records = series("contrastive", BASE) + series("contrastive", {0: 0.9}, epochs=7)
    board = board_of(records, refused=[(make_trial("contrastive+input", epochs=7), "no form")])
    assert [[(row.arm, row.state) for row in block.trained] for block in board.blocks] == [
        [("contrastive", "ok")],
        [("contrastive", "ok"), ("contrastive+input", "n/a")],
    ]


def test_a_table_of_refused_arms_alone_says_how_it_differs(series, make_trial):
    refused = [(make_trial("contrastive+input", epochs=7), "no form")]
    board = board_of(series("contrastive", BASE), refused=refused)
    assert [block.rows[0].factors for block in board.blocks] == ["training.epochs=2", "training.epochs=7"]


def test_a_refused_loss_without_any_run_is_still_shown(make_trial):
    board = board_of([], refused=[(make_trial("contrastive+input"), "no form")])
    assert [(row.arm, row.state) for row in board.blocks[0].rows] == [
        ("contrastive", "--"),
        ("contrastive+input", "n/a"),
    ]


def test_rows_that_differ_in_a_shared_factor_stand_apart(series):
    shared = series("contrastive", BASE) + series("contrastive+input", BASE)
    longer = series("contrastive", {0: 0.9}, epochs=7)
    board = board_of(shared + longer)
    assert [(block.rows[0].factors, len(block.trained)) for block in board.blocks] == [
        ("training.epochs=2", 2),
        ("training.epochs=7", 1),
    ]


def test_other_data_or_evaluators_stand_apart_too(series):
    data = series("contrastive", {0: 0.5})[0].data
    first = series("contrastive", {0: 0.5}, {"provenance": {"evaluator": "old"}})
    second = series("contrastive", {1: 0.5}, {"provenance": {"evaluator": "new"}})
    third = series("contrastive", {2: 0.5}, {"data": data.model_copy(update={"index_fingerprint": "0" * 64})})
    board = board_of(first + second)
    assert [block.rows[0].factors for block in board.blocks] == ["evaluator=new", "evaluator=old"]
    assert len(board_of(first + third).blocks) == 2


def test_floors_join_every_table_of_their_data_and_network(series):
    board = board_of(
        series("contrastive", {0: 0.5})
        + series("contrastive", {0: 0.5}, epochs=7)
        + series("untrained", {0: 0.1}, epochs=7)
        + series("pixels", {0: 0.2}, {"provenance": {"weights": None}})
    )
    assert [[row.arm for row in block.floors] for block in board.blocks] == [["untrained", "pixels"]] * 2
    assert (
        len(board_of(series("contrastive", {0: 0.5}) + series("untrained", {0: 0.1}, backbone="other")).blocks) == 2
    )


def test_losses_may_have_their_own_learning_rate_and_the_caption_says_so(series):
    one = series("contrastive", BASE) + series("proxy_anchor", BASE, lr=0.01)
    board = board_of(one)
    assert len(board.blocks) == 1
    assert "lr 0.001, constant (contrastive); lr 0.01, constant (proxy_anchor)." in board.blocks[0].caption[-1]


def test_two_learning_rates_of_one_loss_are_two_groups_without_a_difference_between_them(series):
    board = board_of(series("contrastive", {0: 0.5}) + series("contrastive+input", {0: 0.6}, lr=0.01))
    assert [(row.name, row.state) for row in board.blocks[0].rows] == [
        ("contrastive (lr 0.001, constant)", "ok"),
        ("contrastive (lr 0.01, constant)", "--"),
        ("+input", "ok"),
    ]
    assert board.blocks[0].rows[2].difference is None


def test_a_score_that_is_no_number_is_left_out_and_named(series):
    records = series("contrastive", BASE)
    records += series("contrastive", {3: 0.9}, {"test": {"R@1": float("nan"), "MAP@R": 0.4}})
    board = board_of(records, findings=rules.over_records(records))
    found = cell(board, "contrastive")
    assert (found.mean, found.n) == (pytest.approx(0.5), 3)
    assert cell(board, "contrastive", "MAP@R").n == 4
    assert "FAIR-22 glyphs/test_resnet/contrastive seed 3: R@1 not finite." in board.blocks[0].notes


def test_a_second_record_of_a_seed_is_left_out_and_named(series):
    first = series("contrastive", {0: 0.5})
    twin = first[0].model_copy(update={"id": "zz"})
    board = board_of([twin, *first], findings=rules.over_records([*first, twin]))
    assert rows(board)["contrastive"].records == f"0:{first[0].id}"
    assert "FAIR-08 zz repeats an arm and seed of its table." in board.blocks[0].notes


def test_the_caption_says_what_was_done(series):
    board = board_of(series("contrastive", BASE) + series("contrastive+input", BASE) + series("untrained", {0: 0.1}))
    said = " ".join(captions.of_board(board))
    assert "Protocol fair, version 1: checkpoint chosen by the highest MAP@R on validation classes" in said
    assert "± half width of the 95 % t-interval over n = 3 training seeds" in said
    assert "paired by seed ± half width of the 95 % t-interval over n = 3 pairs" in said
    assert "Ties count against the model" in said
    assert "No row is marked as best and no difference as significant: n = 3 seeds are fewer than 5." in said
    data = board.blocks[0].caption[0]
    assert data == (
        "Data: train 8 images of 4 classes; validation 4 images of 2 classes; test 8 images of 4 classes; "
        "8 test queries; fingerprint index ffffffffffff."
    )
    assert not board.frame[["best", "second", "significant"]].any(axis=None)


def test_another_version_of_the_protocol_is_not_described_by_this_one(series):
    board = board_of(series("contrastive", {0: 0.5}, {"protocol": {"name": "fair", "version": 99}}))
    assert captions.of_board(board)[0] == "Protocol fair, version 99."


def test_notes_of_trials_and_findings_of_rules_name_their_arms(series):
    marked = {"notes": ("FAIR-22 collapsed at epoch 4",), "provenance": {"device": "A", "initial_weights": "x"}}
    other = {"provenance": {"device": "B", "initial_weights": "y"}, "cost": Cost(steps=7)}
    records = series("contrastive", {0: 0.5}, marked) + series("contrastive+input", {0: 0.5}, other)
    (block,) = board_of(records, findings=rules.over_records(records)).blocks
    found = {note.sentence: note for note in block.findings}
    assert found["FAIR-22 collapsed at epoch 4 (contrastive)."].arms == ("contrastive",)
    weights = next(
        note for sentence, note in found.items() if "initial weights differ between arms of seed 0" in sentence
    )
    assert (weights.rule, weights.severity) == ("FAIR-08", "W")


def test_a_note_names_the_seeds_where_not_all_of_an_arm_have_it(series):
    marked = {"notes": ("the forward ran in chunks of 8 rows",)}
    some_seeds = series("contrastive", {0: 0.5, 3: 0.5}, marked) + series("contrastive", {1: 0.5})
    all_seeds = series("contrastive+input", dict.fromkeys(range(3), 0.5), marked)
    notes = board_of(some_seeds + all_seeds).blocks[0].notes
    assert "the forward ran in chunks of 8 rows (contrastive seed 0, 3, contrastive+input)." in notes


def test_the_order_of_records_changes_nothing(series):
    records = series("contrastive", BASE) + series("contrastive+input", BASE) + series("pixels", {0: 0.1})
    first, second = board_of(records), board_of(records[::-1])
    pandas.testing.assert_frame_equal(first.frame, second.frame)
    pandas.testing.assert_frame_equal(first.scores, second.scores)
    assert captions.of_board(first) == captions.of_board(second)
    assert [block.caption for block in first.blocks] == [block.caption for block in second.blocks]


def test_nothing_at_all_is_a_leaderboard_that_says_so():
    board = board_of([])
    assert board.partial
    assert board.notes == ("No trial has finished yet.",)


def test_tuned_arms_of_a_loss_stand_together_whatever_their_step_sizes(make_trial, make_record):
    def tuned(arm, seed, lr):
        trial = make_trial(arm, seed, lr=lr)
        return trial.model_copy(
            update={"protocol": "tuned", "arm": trial.arm.model_copy(update={"tuned": trial.arm.label})}
        )

    records = [make_record(tuned("contrastive", seed, 1e-3), 0.5 + seed / 100) for seed in (0, 1, 2)]
    records += [make_record(tuned("contrastive+embedding", seed, 4e-3), 0.6 + seed / 100) for seed in (0, 1, 2)]
    (block,) = board_of(records).blocks
    assert [row.arm for row in block.rows] == ["contrastive", "contrastive+embedding"]
    assert block.cell(block.rows[1], "R@1").difference == pytest.approx(0.1)
    assert any("chosen for each arm by a search" in sentence for sentence in block.caption)


def test_data_are_those_of_the_floors_while_no_trained_row_has_a_record(make_trial, make_record, fail):
    floor = make_record(make_trial("untrained"))
    board = board_of([floor], [fail(make_trial())])
    (block,) = board.blocks
    assert block.caption[0].startswith("Data: ")
    assert floor.data.index_fingerprint[:12] in block.caption[0]
