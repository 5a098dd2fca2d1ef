from harness.reports import markdown


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
