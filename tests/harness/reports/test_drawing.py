"""The figures of a leaderboard and of a trial, and the analysis in the latter."""

import pytest

from harness.leaderboard.compose import board_of
from harness.reports import drawing as figures
from harness.reports.drawing import draw_board, draw_overview, draw_trial
from harness.training.trial import run_trial


@pytest.fixture
def analysed(make_trial, tmp_path):
    def analysed(arm):
        trial = make_trial(arm).model_copy(update={"analysis": True})
        dataset = trial.dataset.model_copy(update={"options": {"classes": 16}})
        return run_trial(trial.model_copy(update={"dataset": dataset}), tmp_path)

    return analysed


def test_an_analysed_trial_says_what_its_space_looks_like(analysed, tmp_path):
    record = analysed("multi_similarity+embedding")
    assert 0 < record.analysis["alignment"] < 4
    assert -8 < record.analysis["uniformity"] < 0
    assert record.analysis["utilization_points"] == record.data.images["train"]
    curve = record.analysis["positivity"]
    assert curve["gap"] == pytest.approx(
        [m - c for m, c in zip(curve["measured"], curve["closed_form"], strict=True)]
    )
    assert curve["measured"][0] <= curve["measured"][-1]
    for suffix in ("pdf", "svg", "png"):
        path = draw_trial(record, tmp_path / f"figure.{suffix}")
        first = path.read_bytes()
        assert draw_trial(record, path).read_bytes() == first


def test_a_floor_has_an_analysis_but_no_curve(analysed, tmp_path):
    record = analysed("untrained")
    assert "positivity" not in record.analysis
    with pytest.raises(ValueError, match="was not trained"):
        draw_trial(record, tmp_path / "figure.pdf")


def test_the_analysis_changes_no_id(make_trial):
    assert make_trial().model_copy(update={"analysis": True}).id == make_trial().id


@pytest.fixture
def board(make_trial, make_record):
    arms = ("contrastive", "contrastive+input", "contrastive+feature", "proxy_anchor")
    return board_of(
        make_record(make_trial(arm, s), 0.5 + 0.01 * i + 0.001 * s * i)
        for i, arm in enumerate(arms)
        for s in range(3)
    )


def test_every_figure_of_a_leaderboard_with_its_fonts(board, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "WIDTHS", {"1col": figures.COLUMN_INCHES})
    paths = draw_board(board, tmp_path, (".pdf",))
    assert [path.name for path in paths] == [f"glyphs-test_resnet-{name}-1col.pdf" for name in figures.FIGURES]
    for path in paths:
        content = path.read_bytes()
        assert b"/FontFile2" in content, "fonts are embedded"
        assert b"/Subtype /Type3" not in content
        assert b"CreationDate" not in content


def test_equal_records_give_equal_figures(board, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"forest": figures.forest})
    first, second = (draw_board(board, tmp_path / number, (".pdf", ".svg")) for number in "12")
    assert len(first) == 4
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "<text" not in first[1].read_text(), "letters are outlines"


def test_the_overview_is_one_picture(board, tmp_path):
    first, second = (draw_overview(board, tmp_path / f"{number}.svg").read_bytes() for number in "12")
    assert first == second
    assert first.count(b'id="axes_') == 3
    assert draw_overview(board_of([]), tmp_path / "none.svg") is None


def test_learning_curves_are_the_mean_at_each_epoch_that_all_seeds_have(make_trial, make_record, tmp_path):
    """Curves of older records begin at epoch 1, others at the starting point."""
    older, newer = (make_record(make_trial(seed=seed), 0.5) for seed in (0, 1))
    start = older.curve[0].model_copy(update={"epoch": 0, "loss": None, "validation": {"R@1": 0.0, "MAP@R": 0.0}})
    late = tuple(epoch.model_copy(update={"validation": {"R@1": 0.1, "MAP@R": 0.9}}) for epoch in newer.curve)
    newer = newer.model_copy(update={"curve": (start, *late)})
    board = board_of([older, newer])
    (block,) = board.blocks
    with figures._figure("test", 3.0) as figure:
        assert figures.learning_curves(figure, block, board)
        ((line,),) = (list(axes.lines) for axes in figure.axes)
        assert line.get_xdata().tolist() == [1, 2]
        assert line.get_ydata().tolist() == pytest.approx([50.0, 55.0])  # (10 + 90) / 2, (20 + 90) / 2
    assert figures.draw_trial(newer, tmp_path / "one.svg").exists()


def test_learning_curves_of_a_large_board(make_trial, make_record):
    """With more than 127 records pandas numbers their categories with 16 bits, and those of one row with 8."""
    arms = ("contrastive", "contrastive+embedding")
    board = board_of([make_record(make_trial(arm, seed=seed), 0.5) for arm in arms for seed in range(70)])
    with figures._figure("test", 3.0) as figure:
        assert figures.learning_curves(figure, board.blocks[0], board)


def test_a_board_with_too_little_for_a_figure_has_none(make_trial, make_record, tmp_path):
    alone = board_of([make_record(make_trial(), 0.5, curve=(), selected_epoch=None)])
    assert draw_board(alone, tmp_path, (".png",)) == [
        tmp_path / f"glyphs-test_resnet-recall-{width}.png" for width in figures.WIDTHS
    ]
    assert draw_board(board_of([]), tmp_path) == []


def test_a_difference_within_its_interval_is_pale(make_trial, make_record):
    def cell(scores):
        records = [make_record(make_trial(seed=s), 0.5) for s in range(len(scores))]
        records += [make_record(make_trial("contrastive+input", s), score) for s, score in enumerate(scores)]
        (block,) = board_of(records).blocks
        return block.cell(block.rows[1], "R@1")

    within, beyond = cell((0.49, 0.52, 0.5)), cell((0.53, 0.531, 0.529))  # 0.33 ± 3.8 and 3.0 ± 0.25 points
    assert (figures.depth(within), figures.depth(beyond)) == (0.08, pytest.approx(0.68))
    assert figures.depth(cell((0.4, 0.45))) == 0.08, "two seeds have no interval"


def test_epochs_have_whole_ticks(board):
    from matplotlib.figure import Figure

    figure = Figure()
    assert figures.learning_curves(figure, board.blocks[0], board)
    assert figure.axes[0].get_xlabel() == "epoch"
    low, high = figure.axes[0].get_xlim()
    shown = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
    assert shown == [1, 2]
