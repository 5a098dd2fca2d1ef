"""What is sent along with a command to the head of a cluster."""

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.grid import Grid
from harness.grids import texts
from harness.launch.remote import is_remote, portable, words_there
from harness.runs.errors import RunError


def test_a_grid_is_sent_with_the_files_that_it_includes(tmp_path, monkeypatch):
    """Shipped grids are there already."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/mine.yaml").write_text("include: [smoke, deeper.yaml, ../other.yaml]\nname: mine\n")
    (tmp_path / "parts/deeper.yaml").write_text("name: deeper\n")
    (tmp_path / "other.yaml").write_text("name: other\ninclude: [parts/mine.yaml]\n")
    (tmp_path / "all.yaml").write_text("include: [quick, parts/mine.yaml]\nname: all\n")
    found = texts("all.yaml")
    assert list(found) == ["all.yaml", "parts/mine.yaml", "parts/deeper.yaml", "other.yaml"]
    assert list(texts(tmp_path / "all.yaml")) == [str(tmp_path / "all.yaml"), *list(found)[1:]]
    assert found["parts/deeper.yaml"] == "name: deeper\n"
    assert texts("quick") == {}
    assert texts("none.yaml") == {}


def test_a_file_that_is_not_a_grid_is_sent_unchanged(tmp_path):
    """The head says what is wrong with it."""
    for number, text in enumerate(("a: [", "- 1", "include: 3", "")):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert texts(tmp_path / f"{number}.yaml") == {str(tmp_path / f"{number}.yaml"): text}


def test_names_stay_within_the_folder_they_are_written_in():
    words = ["run", "/home/me/all.yaml", "--out", "/share/run"]
    assert portable(words, {"/home/me/all.yaml": "a", "parts/b.yaml": "b"}) == (
        ["run", "all.yaml", "--out", "/share/run"],
        {"all.yaml": "a", "parts/b.yaml": "b"},
    )
    assert portable(["run", "../all.yaml"], {"../all.yaml": "a"}) == (["run", "all.yaml"], {"all.yaml": "a"})
    assert portable(["run", "here/all.yaml"], {"here/all.yaml": "a"}) == (
        ["run", "all.yaml"],
        {"all.yaml": "a"},
    )


@pytest.mark.parametrize("name", ["/etc/b.yaml", "../b.yaml", "parts/../../b.yaml"])
def test_an_included_file_elsewhere_is_refused(name):
    with pytest.raises(RunError, match=r"includes .*b\.yaml, which cannot be sent to the head of a cluster"):
        portable(["run", "all.yaml"], {"all.yaml": "a", name: "b"})


def test_a_grid_of_included_files_is_that_grid_there(tmp_path, monkeypatch):
    (tmp_path / "here/parts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/all.yaml").write_text("name: all\ninclude: [smoke, parts/one.yaml]\n")
    (tmp_path / "here/parts/one.yaml").write_text("name: one\ninclude: [two.yaml]\n")
    (tmp_path / "here/parts/two.yaml").write_text(
        "name: two\ndatasets: [glyphs]\nbackbones: [test_byobnet]\nlosses: [proxy_anchor]\nlevels: [baseline]\n"
    )
    here = Grid.load("here/all.yaml").model_dump()
    words, files = portable(["run", "here/all.yaml"], texts("here/all.yaml"))
    (tmp_path / "there/parts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there")
    for name, text in files.items():
        (tmp_path / "there" / name).write_text(text)
    assert Grid.load(words[1]).model_dump() == here


def test_a_command_for_another_machine_joins_the_cluster_there():
    assert is_remote("ray://head:10001")
    assert not any(map(is_remote, (None, "auto", "head:6379")))
    for address in (["--address", "ray://head:10001"], ["--address=ray://head:10001"]):
        words = ["run", "quick", *address, "--out", "/share/run"]
        there = words_there(words, Path("/share/run"), data=Path("/data"))
        assert there == ["run", "quick", "--address", "auto", "--out", "/share/run"]
    assert words_there(["run", "--address", "ray://x"], "s3://bucket/run") == ["run", "--address", "auto"]


@pytest.mark.parametrize(
    ("place", "data", "sentence"),
    [
        (None, None, "the run folder results/runs/… would be looked up on the head"),
        (Path("mine"), None, "the run folder mine would be looked up on the head"),
        (
            Path("/share"),
            Path("cub"),
            "--data cub is looked up on the head of the cluster",
        ),
    ],
)
def test_a_path_that_differs_on_the_head_is_rejected(place, data, sentence):
    with pytest.raises(UserError, match=sentence):
        words_there(["run", "--address", "ray://x"], place, data=data)
