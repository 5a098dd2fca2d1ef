from harness.leaderboard import published
from harness.leaderboard.compose import board_of
from harness.reports.formats import markdown


def test_a_table_a_block_with_variants_indented(board):
    lines = markdown.render(board).splitlines()
    assert lines[0] == "# small (partial: 8 of 9 trials)"
    assert "| contrastive | 50.0 ± 24.8 |  | 25.0 ± 12.4 |  | 2.0 s | 1.00× | 3 |" in lines
    assert any(line.endswith("| 1/3 |") for line in lines)
    assert any(line.startswith("| &nbsp;&nbsp;+input | 52.0 ± 26.2 | +2.0 ± 2.5 |") for line in lines)
    assert "| *pixels* | 20.0 |  | 10.0 |  |  |  | 1 |" in lines


def test_every_row_of_a_table_has_as_many_cells(board):
    widths = {line.replace("\\|", "").count("|") for line in markdown.render(board).splitlines() if line[:1] == "|"}
    assert widths == {9}


def test_signs_that_markdown_reads_are_escaped(board, awkward):
    assert markdown.escape(awkward) == "a\\_b%c&amp;d\\#e&lt;f&gt;g\\|h\\*\\~^{}\\\\$"
    assert markdown.escape(awkward) in markdown.render(board)


def test_best_is_bold_second_underlined_and_a_significant_difference_has_a_dagger(judged):
    lines = markdown.render(judged).splitlines()
    assert any(line.startswith("| &nbsp;&nbsp;+feature | **62.0 ± 0.4** | +2.0 ± 0.2† |") for line in lines)
    assert any(line.startswith("| &nbsp;&nbsp;+input | **<u>62.0 ± 0.4</u>** | +2.0 ± 0.2† |") for line in lines)
    assert any(line.startswith("| contrastive | 60.0 ± 0.4 |  |") for line in lines)


def test_published_rows_stand_apart_and_are_named(make_trial, make_record):
    record = make_record(make_trial(dataset="cub200", backbone="resnet50", dim=512), 0.6)
    text = markdown.render(board_of([record], published=published.load()))
    assert "| *contrastive+feature* (Metrix README) | *67.4* |  |  |  |  |  |  |" in text
    assert "proxy\\_anchor" not in text
    assert "Rows in italics with a source: as published elsewhere" in text
    assert (
        "Published R@1 on cub200 with resnet50, 512 dimensions, differs between publications, in points: "
        "contrastive by 0.9 (2 publications)." in text
    )
    assert "| contrastive | Metrix README | *64.7* | 60.0 |  | 30.0 | *75.9* | 60.0 |" in text
    assert "| contrastive | IDML table | *65.6* | 60.0 |" in text
