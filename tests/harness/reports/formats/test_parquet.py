import re

import pandas

from harness.leaderboard.columns import LEADERBOARD, SCORES
from harness.reports.formats import parquet, schema


def test_cells_and_runs_have_their_types_and_nulls(board, tmp_path):
    path = parquet.write(board, tmp_path)
    cells, scores = pandas.read_parquet(path), pandas.read_parquet(tmp_path / "scores.parquet")
    assert list(cells) == list(LEADERBOARD)
    assert list(scores)[: len(SCORES)] == list(SCORES)
    row = cells[(cells.arm == "contrastive+input") & (cells.metric == "R@1")].iloc[0]
    assert (row["mean"], row["n"], row["best"]) == (0.52, 3, False)
    failed = cells[cells.state == "fail"].iloc[0]
    assert failed[["mean", "best", "records"]].isna().all()
    assert len(scores) == 8 * 4
    assert (scores.value.dtype, scores.seed.dtype) == ("float64", "Int64")


def test_every_column_is_in_the_schema(board):
    text = schema.render(board)
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*LEADERBOARD, *SCORES]
