import re

import pandas

from harness.reports import columns
from harness.reports.formats import parquet, schema


def test_cells_and_runs_have_their_types_and_nulls(board, tmp_path):
    path = parquet.write(board, tmp_path)
    cells, runs = pandas.read_parquet(path), pandas.read_parquet(tmp_path / "leaderboard.runs.parquet")
    assert list(cells) == list(columns.CELLS)
    assert list(runs) == list(columns.RUNS)
    row = cells[(cells.arm == "contrastive+input") & (cells.metric == "R@1")].iloc[0]
    assert (row["mean"], row["n"], row["best"]) == (0.52, 3, False)
    failed = cells[cells.state == "fail"].iloc[0]
    assert failed[["mean", "best", "records"]].isna().all()
    assert len(runs) == 8 * 4
    assert runs.value.dtype == "Float64"


def test_every_column_is_in_the_schema(board):
    text = schema.render(board)
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*columns.CELLS, *columns.RUNS]
