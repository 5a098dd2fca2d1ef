"""What metrix-bench list prints."""

import pytest

import baselines
from harness.cli import main
from harness.grids import shipped
from metrix import levels


@pytest.fixture
def run(capsys):
    def run(*words):
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize("what", ["losses", "levels", "metrics", "datasets", "grids"])
def test_lists(run, what):
    code, text = run("list", what)
    assert code == 0
    known = {"losses": ["contrastive", "proxy_anchor"], "datasets": ["glyphs", "omniglot"], "grids": shipped()}
    known |= {"levels": ("baseline", *levels.names()), "metrics": ["R@K", "MAP@R", "R-Precision"]}
    assert all(name in text for name in known[what])


def test_stages_of_a_backbone(run):
    code, text = run("list", "stages", "test_resnet")
    assert code == 0
    assert "layer1" in text


def test_losses_show_their_hyperparameters_and_why_they_have_no_metrix_form(run):
    code, text = run("list", "losses", "s*")
    assert code == 0
    assert "scale=20, gamma=0.1, delta=0.01, centres=10, tau=0.2" in text
    reasons = [line for line in text.splitlines() if "has no Metrix form: " in line]
    assert len(reasons) == sum(not baselines.describe(name).metrix for name in baselines.names() if name[0] == "s")


@pytest.mark.parametrize("width", [80, 120])
def test_the_losses_fit_the_terminal(run, monkeypatch, width):
    """No line is too long, and no name or hyperparameter is broken."""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", str(width))
    code, text = run("list", "losses")
    assert code == 0
    assert max(map(len, text.splitlines())) <= width
    words = text.replace(",", " ").split()
    assert {*baselines.names(), "temperature=0.1111", "boundaries=one", "reduction=mean", "centres=10"} <= {*words}


def test_every_level_says_what_it_mixes(run):
    code, text = run("list", "levels")
    assert (code, "weight=0.4, alpha=2" in " ".join(text.split())) == (0, True)
    assert {"baseline", *levels.names()} <= {*text.split()}
    assert "options of each level of Metrix" in run("list", "levels", "input")[1]


def test_a_shipped_grid_is_listed_with_what_it_is(run):
    code, text = run("list", "grids", "quick")
    assert (code, "Three losses, plain and with Metrix at every level" in text, "smoke" in text) == (0, True, False)
