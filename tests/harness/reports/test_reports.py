"""Every format, found by its file: the same bytes from the same records, put in place whole, nothing dropped."""

import pytest

from harness import reports
from harness.leaderboard.compose import board_of

FORMATS = reports.names()
TEXTS = [name for name in FORMATS if hasattr(reports.find(name), "render")]
WITHOUT_STATE = ("scores", "schema")  # formats of records or of none


def render(name, board):
    return reports.find(name).render(board)


def test_the_formats_of_a_run_folder(board, tmp_path):
    paths = reports.write_all(board, tmp_path / "run")
    leaderboards = {f"leaderboard.{end}" for end in ("csv", "md", "tex", "html")}
    assert {path.name for path in paths} == {*leaderboards, "scores.csv"}
    assert sorted((tmp_path / "run").iterdir()) == sorted(paths)  # nothing is left aside
    assert all(path.read_bytes() for path in paths)


def test_a_format_has_the_name_of_its_file_or_of_its_ending(board, tmp_path):
    assert reports.find("latex") is reports.find("tex")
    assert [path.name for path in reports.write_all(board, tmp_path, ["csv"])] == ["leaderboard.csv"]
    with pytest.raises(ValueError, match="no report format named 'latx'; did you mean 'latex'"):
        reports.find("latx")


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if name not in ("figures", "picture")]
)  # test_figures has them
def test_records_in_any_order_give_the_same_bytes(name, make_board, tmp_path):
    boards = (make_board(), make_board(order=lambda records: records[::-1]))
    for number, board in enumerate(boards):
        reports.write_all(board, tmp_path / str(number), [name])
    files = [
        {path.relative_to(tmp_path / n): path.read_bytes() for path in (tmp_path / n).rglob("*.*")} for n in "01"
    ]
    assert files[0]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in WITHOUT_STATE])
def test_a_report_ends_in_a_line_and_holds_every_state(name, board):
    text = render(name, board)
    assert text.endswith("\n")
    assert all(word in text for word in ("fail", "gone", "n/a", "there is no such form", "omniglot"))


@pytest.mark.parametrize("name", TEXTS)
def test_an_empty_leaderboard_is_still_a_report(name):
    assert render(name, board_of([]))


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    reports.place(tmp_path, "leaderboard.md", "before")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        reports.place(tmp_path, "leaderboard.md", "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
