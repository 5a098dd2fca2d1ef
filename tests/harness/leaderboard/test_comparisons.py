"""Marks, ranks and power of a summary. With five pairs t(0.975, 4) = 2.776445."""

import math
from pathlib import Path

import numpy as np
import pytest

from harness.leaderboard import captions, comparisons
from harness.leaderboard.compose import board_of
from harness.leaderboard.statistics import class_bootstrap, least_detectable
from harness.runs import outcomes
from harness.runs.outcomes import ByClass

NOISE = (0.000, 0.002, -0.001, 0.001, -0.002)  # mean 0, std √2.5 thousandths


@pytest.fixture
def arm(make_trial, make_record):
    """Records of an arm: `mean` + shared noise of the seed + `own` times noise in another order."""

    def make(name, mean, own=1.0, n=5, **where):
        scores = [mean + 3 * NOISE[s] + own * NOISE[(s + 2) % 5] for s in range(n)]
        return [make_record(make_trial(name, s, **where), score) for s, score in enumerate(scores)]

    return make


def cells(board, metric="R@1"):
    """The lines of the first block that have a score, by arm."""
    block = board.blocks[0]
    return {row.arm: cell for row in block.rows if (cell := block.cell(row, metric))}


def marks(cell):
    return tuple(mark for mark in ("best", "second") if getattr(cell, mark))


def test_bold_is_the_best_with_all_not_separable_and_the_second_is_underlined(arm):
    board = board_of(
        arm("contrastive", 0.60, own=2) + arm("proxy_anchor", 0.6995, own=-1) + arm("multi_similarity", 0.70)
    )
    found = cells(board)
    assert {name: marks(cell) for name, cell in found.items()} == {
        "contrastive": (),
        "multi_similarity": ("best",),
        "proxy_anchor": ("best", "second"),
    }
    summary = board.blocks[0].summaries["R@1"]
    assert (summary.best, summary.tied, summary.unmarked) == ("multi_similarity", 1, "")
    assert "FAIR-14 glyphs R@1: best 70.0; 1 row not separable (Holm, 0.05)." in board.blocks[0].notes
    assert "Bold: the highest mean of a column" in " ".join(captions.of_board(board))
    assert [(c.rank, c.rank_low, c.rank_high) for c in found.values()] == [(3, 3, 3), (1, 1, 2), (2, 1, 2)]


def test_a_dagger_needs_five_seeds_and_holm(arm):
    # differences to the baseline: mean + 0.5 or 2 · NOISE[(s + 2) % 5] …, with std 0.5 or 2 · √2.5 thousandths
    records = arm("contrastive", 0.60) + arm("contrastive+input", 0.602, own=1.5)
    records += arm("contrastive+feature", 0.6022, own=3)
    found = cells(board_of(records))

    def p(mean, std):  # Student's t with 4 degrees of freedom in closed form
        t = mean / (std * math.sqrt(2.5e-6) / math.sqrt(5))
        x = t / math.sqrt(4 + t * t)
        return 1 - (x * (3 - x * x)) / 2

    small, large = p(0.002, 0.5), p(0.0022, 2)
    assert found["contrastive+input"].difference_p_holm == pytest.approx(2 * small, rel=1e-6)
    assert found["contrastive+feature"].difference_p_holm == pytest.approx(large, rel=1e-6)
    assert (2 * small < 0.05, large > 0.05) == (True, True)
    assert found["contrastive+input"].significant
    assert not found["contrastive+feature"].significant
    assert found["contrastive"].difference_p_holm is None
    assert not any(cell.significant for cell in cells(board_of([r for r in records if r.trial.seed < 4])).values())


def test_power_of_a_column_is_that_of_its_pooled_spread(arm):
    records = arm("contrastive", 0.60) + arm("contrastive+input", 0.602, own=1.5)
    records += arm("contrastive+feature", 0.6022, own=3)
    block = board_of(records).blocks[0]
    summary = block.summaries["R@1"]
    assert (summary.comparisons, summary.seeds) == (2, 5)
    assert summary.spread == pytest.approx(math.sqrt(2.5e-6 * (0.25 + 4) / 2))
    assert summary.least == pytest.approx(least_detectable(summary.spread, 5, comparisons=2))
    said = " ".join(block.caption)
    assert "is detected with 80 % probability after Holm for 2 comparisons" in said
    assert comparisons.plan(summary)[2] > comparisons.plan(summary)[0] >= 3
    assert comparisons.plan(comparisons.Summary("R@1")) == (None, None, None)


def test_nothing_is_best_while_a_row_with_fewer_seeds_is_higher(arm):
    board = board_of(arm("contrastive", 0.60) + arm("proxy_anchor", 0.65) + arm("multi_similarity", 0.70, n=3))
    assert not any(cell.best for cell in cells(board).values())
    assert "FAIR-14 glyphs R@1: no row is marked as best: multi_similarity is higher but has fewer than 5 seeds." in (
        board.blocks[0].notes
    )


def test_one_row_alone_is_not_the_best(arm):
    board = board_of(arm("contrastive", 0.60))
    assert marks(cells(board)["contrastive"]) == ()
    assert board.blocks[0].summaries["R@1"].unmarked == "there is nothing to compare it with"


def test_intervals_over_test_classes_where_outcomes_were_kept(arm):
    records = arm("contrastive", 0.60) + arm("contrastive+input", 0.602, own=1.5)
    rng = np.random.default_rng(0)
    kept = {r.id: ByClass(np.arange(9), np.full(9, 10), {"R@1": rng.binomial(10, 0.6, 9) * 1.0}) for r in records}
    block = board_of(records, outcomes=kept.get).blocks[0]
    base, variant = (block.cell(row, "R@1") for row in block.rows)
    outcomes = kept[records[0].id]
    expected = class_bootstrap(
        np.stack([kept[r.id].sums["R@1"] for r in records[:5]]), outcomes.counts, over_seeds=False
    )
    assert (base.classes_low, base.classes_high) == (expected.low, expected.high)
    assert base.classes_high - base.classes_low < base.both_high - base.both_low
    assert min(r.test["R@1"] for r in records[:5]) <= base.bootstrap_low < base.mean < base.bootstrap_high
    assert base.difference_both_low is None
    assert variant.difference_both_low < variant.difference_both_high
    assert "with other test classes a score would vary by ±" in " ".join(block.caption)
    assert block.cell(block.rows[0], "MAP@R").classes_low is None, "not kept"
    del kept[records[0].id]
    block = board_of(records, outcomes=kept.get).blocks[0]
    assert block.cell(block.rows[0], "R@1").classes_low is None, "not of all seeds"
    assert block.cell(block.rows[1], "R@1").difference_both_low is None


def test_outcomes_by_class_also_where_not_every_image_asks(tmp_path: Path):
    kept = {"labels": np.array([7, 7, 3, 3]), "ids": np.array(list("abcd")), "queries": np.array(list("dba"))}
    np.savez(tmp_path / "some.npz", **kept, **{"query R@1": np.array([True, False, True])})
    found = outcomes.by_class(tmp_path / "some.npz", ("R@1", "MAP@R"))
    assert (found.classes.tolist(), found.counts.tolist(), found.sums["R@1"].tolist()) == ([3, 7], [1, 2], [1, 1])
    assert list(found.sums) == ["R@1"]
    assert outcomes.by_class(tmp_path / "none.npz", ("R@1",)) is None
    (tmp_path / "cut.npz").write_bytes((tmp_path / "some.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read as outcomes"):
        outcomes.by_class(tmp_path / "cut.npz", ("R@1",))


def test_variance_over_a_grid_is_that_of_its_complete_part(arm):
    means = {"contrastive": 0.4, "proxy_anchor": 0.5}
    records = [
        record
        for dataset, more in (("glyphs", 0.0), ("omniglot", 0.2))
        for loss, mean in means.items()
        for level in ("", "+input")
        for record in arm(loss + level, mean + more, own=0, n=3, dataset=dataset)
    ]
    lone = arm("multi_similarity", 0.9, n=3)
    found = board_of(records + lone).variance
    shares = dict(found.shares)
    # datasets ± 0.1, losses ± 0.05, seeds 3 · (0, 2, −1) thousandths; nothing else moves
    seed = np.var([0, 0.006, -0.003])
    total = 0.01 + 0.0025 + seed
    assert found.sizes == (("dataset", 2), ("loss", 2), ("level", 2), ("seed", 3))
    assert shares["dataset",] == pytest.approx(0.01 / total)
    assert shares["loss",] == pytest.approx(0.0025 / total)
    assert shares["seed",] == pytest.approx(seed / total)
    assert shares[()] == pytest.approx(0, abs=1e-9)
    assert found.left_out == ("loss multi_similarity",)
    assert board_of(lone).variance is None
    sentence = (
        "Variance of R@1 over 2 datasets × 2 losses × 2 levels × 3 seeds: dataset 80 %, loss 20 %, "
        "everything else 0 % (η²; left out to complete the grid: loss multi_similarity)."
    )
    assert sentence in captions.of_board(board_of(records + lone))


ADDED = 0.1 + 0.2  # 0.30000000000000004


@pytest.mark.parametrize("noise", [0.3, ADDED])
@pytest.mark.parametrize("n", [3, 5])
def test_equal_rows_are_equal_in_rank_and_mark(make_trial, make_record, noise, n):
    """The same scores, or the same but for the order in which they were added up."""
    scores = (0.30, 0.36, 0.31, 0.34, 0.32)[:n]
    records = [make_record(make_trial("contrastive", seed), score) for seed, score in enumerate(scores)]
    records += [make_record(make_trial("nca", s), score - 0.3 + noise) for s, score in enumerate(scores)]
    records += [make_record(make_trial("proxy_anchor", s), score) for s, score in enumerate(scores[::-1])]
    found = cells(board_of(records))
    assert {cell.rank for cell in found.values()} == {1}
    assert {marks(cell) for cell in found.values()} == {("best",) if n == 5 else ()}
    assert "Underlined" not in " ".join(captions.of_board(board_of(records)))


def test_the_second_highest_mean_is_the_next_distinct_one_and_all_that_have_it(arm):
    board = board_of(
        arm("contrastive", 0.70)
        + arm("nca", 0.70)
        + arm("proxy_anchor", 0.60)
        + arm("triplet", 0.60 + 1e-16)
        + arm("multi_similarity", 0.50)
    )
    found = cells(board)
    assert {name: (cell.rank, marks(cell)) for name, cell in found.items()} == {
        "contrastive": (1, ("best",)),
        "nca": (1, ("best",)),
        "proxy_anchor": (3, ("second",)),
        "triplet": (3, ("second",)),
        "multi_similarity": (5, ()),
    }


def test_nobody_is_second_while_a_row_with_fewer_seeds_is(arm):
    found = cells(board_of(arm("contrastive", 0.70) + arm("nca", 0.65, n=3) + arm("proxy_anchor", 0.60)))
    assert {name: (cell.rank, cell.second) for name, cell in found.items()} == {
        "contrastive": (1, False),
        "nca": (2, False),
        "proxy_anchor": (3, False),
    }


def test_a_floor_above_all_rows_is_said_to_be_a_floor(arm):
    board = board_of(arm("contrastive", 0.60) + arm("proxy_anchor", 0.65) + arm("untrained", 0.70))
    assert "FAIR-14 glyphs R@1: no row is marked as best: untrained is higher but was not trained." in (
        board.blocks[0].notes
    )
