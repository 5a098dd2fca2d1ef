"""What README.md prints works as it is printed."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import harness
from harness.cli import main
from harness.data import datasets
from harness.data.splits import fair_validation

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text below a heading of the second level."""
    return re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[0]


def blocks(title: str, language: str) -> list[str]:
    """Return the code blocks of a language in a section."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Return a function that runs Python in a copy of the project that has the README's loss."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("baselines", "metrix", "harness", "tests", "results"):
        skipped = ("__pycache__", *(("runs",) if name == "results" else ()))  # harness/runs is code
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*skipped))
    shutil.copy(ROOT / "pyproject.toml", folder)
    page = section("Adding a loss")
    (code,) = blocks("Adding a loss", "python")
    (folder / re.findall(r"Save it as `(\S+)`", page)[0]).write_text(code, encoding="utf-8")

    def run(*words) -> str:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        words = [sys.executable, "-m", *map(str, words)]
        done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=600)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(clone, tmp_path_factory):
    """Return the output and the folder of a short run of the README's loss that keeps its weights.

    The command is the printed one, limited to one seed, one epoch and no floors.
    """
    printed = re.findall(r"`make benchmark ARGS='(.*?)'`", section("Adding a loss"))[0]
    assert "`--set keep=weights`" in section("After the benchmark")
    short = ["--seeds", "0", "--set", "epochs=1", "--set", "floors=[]"]
    words = [*shlex.split(printed), *short, "--set", "keep=weights"]
    folder = tmp_path_factory.mktemp("run") / "run"
    return clone("harness.cli", "run", "quick", "--out", folder, *words), folder


def make_readme(folder: Path, readme: str, board: str, grid) -> str:
    """Return a README after `make readme` with the leaderboard of a run."""
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "leaderboard.md").write_text(board, encoding="utf-8")
    words = ["make", "--makefile", ROOT / "Makefile", "readme", f"GRID={grid}", "OUT=."]
    subprocess.run(words, cwd=folder, check=True)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("grid", ["photos", "quick"])
def test_the_table_is_the_committed_board(grid, tmp_path):
    (figure,) = re.findall(rf"\]\((results/{grid}-.*?)\.svg\)", README)
    board = (ROOT / f"{figure}.md").read_text(encoding="utf-8")
    empty = re.sub(rf"(results:{grid}:begin -->\n).*(?=<!-- results:{grid}:end)", r"\1", README, flags=re.S)
    assert len(empty) < len(README)
    assert make_readme(tmp_path, empty, board, grid) == README
    assert make_readme(tmp_path, README, board, grid) == README


def test_the_captions_of_every_table_are_folded(tmp_path):
    board = "# two\n\n## a\n\n| x |\n| --- |\n\nData.\n\n- Note.\n\n## b\n\n| y |\n| --- |\n\nMore.\n"
    made = make_readme(tmp_path, "<!-- results:quick:begin -->\n<!-- results:quick:end -->\n", board, "quick")
    fold = "<details><summary>Settings, notes and statistics of this table</summary>"
    assert [line for line in made.splitlines() if line][1:-1] == [
        *("### a", "| x |", "| --- |", fold, "Data.", "- Note.", "</details>"),
        *("### b", "| y |", "| --- |", fold, "More.", "</details>"),
    ]


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert len(targets) > 3
    assert [t for t in targets if not t.startswith("https://") and not (ROOT / t).exists()] == []


def test_the_grid_is_one(tmp_path):
    (text,) = blocks("A grid", "yaml")
    path = tmp_path / "mine.yaml"
    for hidden in ("folds", "keep"):
        text = re.sub(rf"^# ({hidden}: \w+)", r"\1", text, flags=re.M)
    path.write_text(text, encoding="utf-8")
    grid = harness.Grid.load(path)
    assert (grid.folds, grid.keep, len(grid.seeds)) == (4, "weights", 5)
    assert {level.at for level in grid.levels} == {"baseline", "embedding", "feature", "input"}


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), len(path.parents), np.uint8)).save(path)


def classes(dataset, split) -> int:
    return len(np.unique(dataset.labels[split]))


def test_a_folder_of_classes_is_split_as_described(tmp_path):
    for number in range(20):
        for image in range(2):
            photo(tmp_path / f"photos/class{number}/{image}.jpg")
    options = yaml.safe_load(re.findall(r"`(\{name: folder.*?\}\})`", section("Your own images"))[0])["options"]
    for given, tested in (({}, 10), (options, 6)):
        dataset = datasets.load("folder", tmp_path / "photos", tmp_path / "cache", **given)
        split = fair_validation(dataset)
        validated = math.ceil((20 - tested) / 5)
        counts = [classes(dataset, split == part) for part in ("test", "validation", "train")]
        assert counts == [tested, validated, 20 - tested - validated]


def enlarged(line: str) -> list[str]:
    """Return a line about one image of one class as four: two images each of two classes."""
    return [re.sub(r"(chair|lamp)", rf"\1{kind}", line).replace("1.jpg", f"{n}.jpg") for kind in "ab" for n in (1, 2)]


def test_the_folders_of_a_split_are_read_as_described(tmp_path):
    for path in re.findall(r"photos/(?:train|test)/\S+\.jpg", section("Your own images")):
        for each in enlarged(path):
            photo(tmp_path / each)
    dataset = datasets.load("folder", tmp_path / "photos", tmp_path / "cache")
    found = {(split, dataset.class_names[label]) for split, label in zip(dataset.split, dataset.labels, strict=True)}
    assert found == {("test", "lampa"), ("test", "lampb"), ("train", "chaira"), ("train", "chairb")}


def test_the_paths_of_a_manifest_are_relative_to_it(tmp_path):
    (text,) = blocks("Your own images", "csv")
    header, *lines = text.splitlines()
    lines = [each for line in lines for each in enlarged(line)]
    for line in lines:
        photo(tmp_path / "photos" / line.partition(",")[0])
    (tmp_path / "photos/list.csv").write_text("\n".join((header, *lines)), encoding="utf-8")
    dataset = datasets.load("manifest", tmp_path / "photos/list.csv", tmp_path / "cache")
    rows = zip(dataset.keys, dataset.labels, dataset.split, strict=True)
    assert [f"{path},{dataset.class_names[label]},{split}" for path, label, split in rows] == lines


def test_the_scores_are_the_printed_ones(tmp_path, monkeypatch, capsys):
    """The records are those of the table."""
    with zipfile.ZipFile(ROOT / "tests/harness/reports/guard/quick.zip") as archive:
        archive.extractall(tmp_path / "results/runs/quick")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("Scores as a DataFrame", "python")
    (printed,) = blocks("Scores as a DataFrame", "text")
    exec(code, {})
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == printed.splitlines()


def test_embeddings_are_evaluated():
    generator = np.random.default_rng(0)
    given = {"embeddings": generator.normal(size=(40, 8)), "labels": np.repeat(np.arange(8), 5)}
    evaluate, _ = blocks("In your own code", "python")
    exec(evaluate, given)
    scores = given["scores"]
    printed = re.findall(r"# (\{.*\})", evaluate)[0]
    assert set(re.findall(r'"(.*?)"', printed)) == set(scores.values)
    assert len(scores.per_query["R@1"]) == 40


def test_the_training_loop():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    given = {
        "images": images,
        "labels": torch.tensor([0, 0, 1, 1, 2, 2]),
        "model": model,
        "embeddings": model(images),
    }
    _, train = blocks("In your own code", "python")
    exec(train, given)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert given["model"].backbone.conv1.weight.grad.abs().sum() > 0


def test_a_kept_network_embeds_photos_and_is_exported(trained, tmp_path, monkeypatch):
    _, run = trained
    shutil.copytree(run, tmp_path / "results/runs/quick")
    for number in range(1, 10):
        photo(tmp_path / f"photos/{number}.jpg")
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("After the benchmark", "sh")
    for line in commands.splitlines():
        assert main(shlex.split(line)[1:]) == 0
    written = re.findall(r"`(\w+\.(?:npz|json|safetensors))`", section("After the benchmark"))
    assert {name for name in written if (tmp_path / name).exists() or (tmp_path / "exported" / name).exists()} == set(
        written
    )
    (load,) = blocks("After the benchmark", "python")
    given = {}
    exec(load, given)
    with np.load("embeddings.npz") as stored:
        np.testing.assert_allclose(given["embeddings"], stored["embeddings"][:2], atol=1e-5)


def test_what_is_sent_to_a_colleague_is_enough_for_the_same_tables(trained, clone, tmp_path):
    _, run = trained
    shutil.copytree(run, tmp_path / "results/runs/quick")
    (command,) = blocks("Send results to a colleague", "sh")
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    subprocess.run(["tar", "-xzf", tmp_path / "quick.tgz"], cwd=tmp_path, check=True)
    received = tmp_path / "quick"
    assert not (received / "checkpoints").exists()
    boards = {path.name: path.read_text(encoding="utf-8") for path in received.glob("leaderboard.[!h]*")}
    for path in received.glob("leaderboard.*"):
        path.unlink()
    clone("harness.cli", "report", received)
    assert {path.name: path.read_text(encoding="utf-8") for path in received.glob("leaderboard.[!h]*")} == boards


def test_the_contract_tests_find_an_added_loss_and_pass(clone):
    words = ("-rA", "-p", "no:cacheprovider", "tests/baselines", "tests/metrix", "-k", "soft_contrastive")
    passed = set(re.findall(r"^PASSED \S+::(\w+)\[soft_contrastive", clone("pytest", *words), re.M))
    assert passed >= {
        "test_describes_itself",
        "test_gradient_equals_finite_differences",
        "test_autocast_changes_nothing",
    }


def test_the_command_for_an_added_loss_runs_it_alone_and_with_metrix_at_every_level(trained):
    (code,) = blocks("Adding a loss", "python")
    assert len(code.splitlines()) < 35
    printed, run = trained
    assert "4 of 4 trials done" in printed
    arms = {json.loads(path.read_text(encoding="utf-8"))["arm"] for path in run.glob("records/*.json")}
    assert arms == {f"soft_contrastive{level}" for level in ("", "+embedding", "+feature[stage=layer3]", "+input")}


def test_the_table_of_losses_and_levels_is_that_of_the_registers(capsys):
    """`make forms` writes it."""
    assert main(["list", "forms", "--format", "markdown"]) == 0
    table = re.findall(r"<!-- forms:begin -->\n(.*?)<!-- forms:end -->", README, re.S)
    assert table == [capsys.readouterr().out]
