"""The command line from records to files: the same bytes again, filters, several runs, where a number comes from."""

import numpy as np
import pytest

from harness.cli import main
from harness.runs.run import Run


@pytest.fixture
def folder(tmp_path, make_trial, make_record):
    """A run of two arms, three seeds each, whose test queries were kept."""
    run = Run(tmp_path / "run")
    rng = np.random.default_rng(0)
    for arm, score in (("contrastive", 0.5), ("contrastive+input", 0.52), ("proxy_anchor", 0.4)):
        for seed in range(3):
            trial = make_trial(arm, seed, dataset="cub200", backbone="resnet50", dim=512)
            ids = np.array([f"image {i}" for i in range(24)])
            kept = {"embeddings": rng.normal(size=(24, 4)), "ids": ids, "queries": ids, "labels": np.arange(24) // 4}
            run.keep_queries(trial, **kept, **{"query R@1": rng.random(24) < score})
            run.finish(make_record(trial, score + seed / 100))
    return run.folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_report_is_the_same_bytes_again(folder, tmp_path):
    formats = "csv,md,latex,html,parquet,scores"
    for name in ("first", "second"):
        assert main(["report", str(folder), "--out", str(tmp_path / name), "--format", formats]) == 0
    first = files(tmp_path / "first")
    endings = ("csv", "md", "tex", "bib", "html", "parquet", "schema.md")
    assert set(first) == {*(f"leaderboard.{end}" for end in endings), "scores.csv", "scores.parquet"}
    assert first == files(tmp_path / "second")


def test_a_part_has_a_folder_of_its_own(folder):
    words = ["report", str(folder), "--only", "dataset=cub200", "--only", "level=input", "--metrics", "R@2"]
    assert main([*words, "--format", "latex"]) == 0
    text = (folder / "only" / "dataset=cub200-level=input" / "leaderboard.tex").read_text()
    assert "Proxy-anchor & " not in text
    assert r"\multicolumn{2}{c}{R@2}" in text
    assert r"\multicolumn{2}{c}{R@1} &" not in text
    assert not (folder / "leaderboard.tex").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--only", "dataset=cub20"], "no dataset named 'cub20'; did you mean 'cub200'"),
        (["--only", "datset=cub200"], "did you mean 'dataset'"),
        (["--format", "latx"], "did you mean 'latex'"),
        (["--metrics", "R@3"], "no metric in these records named 'R@3'"),
        (["OTHER"], "--out"),
    ],
)
def test_what_cannot_be_reported_is_said(folder, more, sentence, capsys):
    assert main(["report", str(folder), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_numbers_lead_to_records_and_seeds_to_what_they_can_show(folder, capsys):
    assert main(["trace", str(folder), "contrastive+input"]) == 0
    said = capsys.readouterr().out
    assert said.count("records/cub200-resnet50-contrastive+input-s") == 3
    assert "52.0000" in said
    assert main(["power", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "for 0.5" in said
    assert "cub200, not CUB-200-2011 · resnet50" in said


def test_the_command_says_which_file_to_open_and_what_citations_need(folder, capsys):
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    bibtex = "citations of leaderboard.tex are [?] until bibtex has run: pdflatex, bibtex, pdflatex, pdflatex"
    assert said.splitlines()[-2:] in (
        [bibtex, f"open {folder}/leaderboard.html in a browser"],
        [f"open {folder}/leaderboard.html in a browser", bibtex],
    )
    head = (folder / "leaderboard.tex").read_text().splitlines()[1:3]
    assert head == [
        f"% Published rows: {bibtex}.",
        r"% A paper that reads this file names leaderboard in its own \bibliography.",
    ]
    assert main(["report", str(folder), "--format", "csv"]) == 0
    assert "open " not in capsys.readouterr().out
