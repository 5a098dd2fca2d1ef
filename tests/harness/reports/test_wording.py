import pytest

from harness.leaderboard.compose import board_of
from harness.reports import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.42, "0.4 s"), (24.4, "24 s"), (99.6, "1.7 min"), (192, "3.2 min"), (5040, "84.0 min"), (7200, "2.0 h")],
)
def test_seconds(value, text):
    assert wording.seconds(value) == text


def test_a_score_and_a_difference_in_percent(board):
    block = board.blocks[0]
    cell = block.cell(next(row for row in block.rows if row.level == "input"), "R@1")
    assert wording.score(cell) == "52.0 ± 26.2"  # std √0.0111, t 4.3027: 0.2617
    assert wording.difference(cell) == "+2.0 ± 2.5"


def test_a_loss_has_a_real_minus_sign_and_zero_has_none(make_trial, make_record):
    def printed(score):
        records = [make_record(make_trial(), 0.5), make_record(make_trial("contrastive+input"), score)]
        (block,) = board_of(records).blocks
        return wording.difference(block.cell(block.rows[1], "R@1"))

    assert printed(0.49) == "−1.0"
    assert printed(0.4999) == "+0.0"


def test_two_decimals_where_one_would_print_an_interval_as_zero(make_trial, make_record):
    records = [make_record(make_trial(seed=s), 0.5 + 0.0001 * s) for s in range(3)]
    block = board_of(records).blocks[0]  # std 0.0001, half 0.000248
    assert wording.score(block.cell(block.rows[0], "R@1"), wording.decimals(block, "R@1")) == "50.01 ± 0.02"


def test_seeds_say_how_many_are_missing(make_trial, make_record):
    trials = [make_trial(seed=seed) for seed in range(3)]
    board = board_of([make_record(trial) for trial in trials[::2]], planned=trials)
    assert wording.seeds(board.blocks[0].rows[0]) == "2/3"
