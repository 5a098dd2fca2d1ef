"""What metrix-bench published prints."""

import csv
from pathlib import Path

import pytest

from harness.cli import main

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture
def run(capsys):
    def run(*words):
        code = main(["published", *words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_a_cell_is_a_line_and_the_summary_follows(run):
    code, text = run("cub200", "--backbone", "resnet50", "--dim", "512", "--loss", "proxy_anchor")
    assert code == 0
    (line,) = (line for line in text.splitlines() if " proxy_anchor " in line and line.startswith(" cub200"))
    assert line.split()[:9] == ["cub200", "ResNet-50", "512", "proxy_anchor", "R@1", "69.0", "69.9", "0.9", "4"]
    assert "IDML table 69.0; sfora, reproduction 69.19; Metrix README 69.5 (224 px, batches of 100)" in line
    assert "1 of the 1 cells that two or more publications share disagree" in text


def test_one_metric_is_listed_and_all_metrics_disagree(run):
    assert "MAP@R" not in run("--loss", "contrastive")[1]
    assert "MAP@R" in run("--loss", "contrastive", "--metric", "MAP@R")[1]
    assert " R@2 " in run("--disagreements")[1]
    assert " R@2 " not in run("--disagreements", "--metric", "R@1")[1]


def test_names_of_theirs_are_explained(run):
    sentence = "(theirs): defined otherwise than the loss of that name here."
    assert sentence in run("--loss", "triplet (theirs)")[1]
    assert sentence not in run("--loss", "contrastive")[1]


def test_unknown_names_are_refused_with_the_nearest(run):
    assert run("cub20") == (
        2,
        "metrix-bench: no dataset in published numbers named 'cub20'; did you mean 'cub200'?\n",
    )
    assert run("--backbone", "resnet5")[1].endswith("did you mean 'ResNet-50'?\n")


def test_names_without_a_common_number_give_an_empty_list(run):
    code, text = run("inshop", "--backbone", "GoogLeNet", "--loss", "circle")
    assert code == 0
    assert "nothing" in text
    assert "No two publications give a number for the same thing here." in text


@pytest.mark.parametrize(("format", "suffix"), [("markdown", "md"), ("csv", "csv")])
def test_the_list_of_disagreements_in_results_is_current(run, format, suffix):
    code, text = run("--disagreements", "--format", format)
    assert code == 0
    assert text == (RESULTS / f"published-disagreements.{suffix}").read_text(encoding="utf-8")


def test_the_largest_disagreement_comes_first():
    with (RESULTS / "published-disagreements.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    spreads = [float(line["spread"]) for line in lines]
    assert (len(lines), spreads[0], spreads[-1]) == (28, 4.5, 0.2)
    assert spreads == sorted(spreads, reverse=True)
