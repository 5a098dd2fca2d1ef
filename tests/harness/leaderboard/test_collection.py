"""Several runs as one: what is the same counts once, what conflicts is named, filters keep the tests of the whole."""

from pathlib import Path

import pytest

from harness.grid import Grid
from harness.leaderboard import collection
from harness.leaderboard.collection import collect
from harness.leaderboard.filters import of_rows, parse
from harness.reports.gallery import with_gallery
from harness.runs.errors import RunError
from harness.runs.run import Run


@pytest.fixture
def run(tmp_path, make_record):
    """A run folder that holds records of (trial, score)."""

    def make(name, *scored, **changes):
        run = Run(tmp_path / name)
        (run.folder / "records").mkdir(parents=True)
        for trial, score in scored:
            run.finish(make_record(trial, score, **changes))
        return run.folder

    return make


def test_a_trial_of_two_runs_counts_once_and_a_conflict_is_named(run, make_trial):
    same, other = make_trial(seed=0), make_trial(seed=1)
    folders = [run("a/quick", (same, 0.5), (other, 0.5)), run("b/quick", (same, 0.5), (other, 0.25))]
    found = collect(folders)
    assert {record.id: record.test["R@1"] for record in found.records} == {same.id: 0.5, other.id: 0.5}
    conflict = (
        f"FAIR-08 {other.id} differs between a/quick and b/quick: R@1 0.5000 and 0.2500; that of a/quick is used."
    )
    assert found.notes == (conflict,)
    assert conflict in found.board().notes


def test_protocols_and_evaluators_that_differ_are_named_and_stand_apart(run, make_trial):
    fair = run("fair", (make_trial(), 0.5), provenance={"evaluator": "one"})
    paper = {"protocol": {"name": "paper", "version": 1}, "provenance": {"evaluator": "two"}}
    trial = make_trial().model_copy(update={"protocol": "paper"})
    found = collect([fair, run("paper", (trial, 0.6), **paper)])
    assert found.notes == (
        "FAIR-25 records of several protocols (fair version 1, paper version 1): each protocol has its own tables.",
        "FAIR-25 records of 2 versions of the evaluator: each version has its own tables.",
    )
    assert len(found.board().blocks) == 2


def test_filters_on_records(run, make_trial):
    trials = [make_trial(seed=s, dataset=d) for d in ("glyphs", "omniglot") for s in (0, 1)]
    folder = run("some", *((trial, 0.5) for trial in trials))
    found = collect([folder], parse(["dataset=omniglot", "seed=1"]))
    assert [record.id for record in found.records] == [trials[3].id]
    with pytest.raises(ValueError, match="--only dataset: no dataset named 'omniglo'; did you mean 'omniglot'"):
        collect([folder], {"dataset": ["omniglo"]})


def test_a_refused_arm_follows_the_settings_of_its_grid_and_their_filters(run):
    def planned(name, *overrides):
        grid = Grid.load("quick", ["losses=[arcface]", "floors=[]", *overrides])
        trials = [trial for trial in grid.trials() if trial.arm.at == "baseline"]
        refused = [(*t.cell, "no form") for t in grid.trials() if t.arm.at != "baseline" and t.seed == grid.seeds[0]]
        folder = run(name, *((trial, 0.5) for trial in trials))
        Run(folder).remember(grid, trials, refused)
        return folder

    short = planned("short", "levels=[baseline,embedding]", "epochs=2", "seeds=[0]")
    long = planned("long", "levels=[baseline]", "epochs=7", "seeds=[1]")
    blocks = collect([short, long, short]).board().blocks
    assert [[(row.arm, row.state) for row in block.trained] for block in blocks] == [
        [("arcface", "ok"), ("arcface+embedding", "n/a")],
        [("arcface", "ok")],
    ]
    assert len(collect([short, short], {"seed": ["0"]}).refused) == 1
    assert collect([short, long], {"seed": ["1"]}).refused == ()


def test_filters_on_rows_keep_baselines_and_the_tests_of_the_whole_table(run, make_trial):
    arms = ("contrastive", "contrastive+input", "contrastive+embedding", "proxy_anchor")
    folder = run("some", *((make_trial(arm, s), 0.5 + 0.01 * i) for i, arm in enumerate(arms) for s in (0, 1)))
    whole = collect([folder]).board()
    part = of_rows(whole, {"level": ["input"]})
    assert [row.arm for row in part.blocks[0].rows] == ["contrastive", "contrastive+input"]
    assert part.blocks[0].rows[1] == whole.blocks[0].rows[2]
    assert set(part.frame["arm"]) == {"contrastive", "contrastive+input"}
    assert part.notes == ("Only level input, with baselines: tests, ranks and marks are those of the whole table.",)
    assert of_rows(whole, {}) is whole


def test_a_comma_in_brackets_belongs_to_the_arm():
    assert parse(["arm=a+feature[stage=x,pairs=pos-neg],b", "arm=c"]) == {
        "arm": ["a+feature[stage=x,pairs=pos-neg]", "b", "c"]
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [("cub200", "not written key=value"), ("dataset=", "not written key=value"), ("datset=x", "mean 'dataset'")],
)
def test_what_is_no_filter_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse([text])


def test_every_number_leads_to_its_record(run, make_trial):
    folder = run("some", *((make_trial(seed=s), 0.5 + s / 10) for s in (1, 0)))
    found = collection.trace(collect([folder]), "contrastive")
    assert [(seed, scores["R@1"], Path(path).is_file()) for *_, seed, scores, path in found] == [
        (0, 0.5, True),
        (1, 0.6, True),
    ]
    with pytest.raises(ValueError, match="no arm named 'contrastiv'; did you mean 'contrastive'"):
        collection.trace(collect([folder]), "contrastiv")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        collect([tmp_path])


def test_a_damaged_file_of_outcomes_is_named_and_the_report_goes_on(run, make_trial):
    trials = [make_trial(seed=seed) for seed in range(3)]
    folder = run("some", *((trial, 0.5) for trial in trials))
    (folder / "per_query").mkdir()
    for trial in trials:
        (folder / "per_query" / f"{trial.id}.npz").write_bytes(b"PK\x03\x04 cut off")
    found = collect([folder])
    board = found.board()
    (block,) = board.blocks
    assert block.cell(block.rows[0], "R@1").n == 3
    assert [f"{trial.id}.npz" in note for trial, note in zip(trials, board.notes, strict=True)] == [True] * 3
    assert all(note.endswith("Its row has no interval over test classes.") for note in board.notes)
    assert with_gallery(board, found).gallery == ()
