import pytest

from harness.leaderboard.tables import Row, leaderboard
from harness.reports import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.42, "0.4 s"), (24.4, "24 s"), (99.6, "1.7 min"), (192, "3.2 min"), (5040, "84.0 min"), (7200, "2.0 h")],
)
def test_seconds(value, text):
    assert wording.seconds(value) == text


def test_a_score_and_a_difference_in_percent(board):
    row = next(row for row in board.blocks[0].rows if row.level == "input")
    assert wording.score(row.cells["R@1"]) == "52.0 ± 26.2"  # std √0.0111, t 4.3027: 0.2617
    assert wording.difference(row.cells["R@1"]) == "+2.0 ± 2.5"


def test_a_loss_has_a_real_minus_sign_and_zero_has_none(make_trial, make_record):
    def printed(score):
        records = [make_record(make_trial(), 0.5), make_record(make_trial("contrastive+input"), score)]
        return wording.difference(leaderboard(records).blocks[0].rows[1].cells["R@1"])

    assert printed(0.49) == "−1.0"
    assert printed(0.4999) == "+0.0"


def test_two_decimals_where_one_would_print_an_interval_as_zero(make_trial, make_record):
    records = [make_record(make_trial(seed=s), 0.5 + 0.0001 * s) for s in range(3)]
    block = leaderboard(records).blocks[0]  # std 0.0001, half 0.000248
    assert wording.score(block.rows[0].cells["R@1"], wording.decimals(block, "R@1")) == "50.01 ± 0.02"


def test_seeds_say_how_many_are_missing():
    assert wording.seeds(Row("a", "a", "a", "baseline", "partial", seeds=(0, 2), expected=(0, 1, 2))) == "2/3"
