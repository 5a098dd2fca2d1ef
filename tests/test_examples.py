"""The examples run as they are."""

import json
import runpy
import sys
import zipfile

import matplotlib
import pytest

from tests.harness.pictures import class_folders
from tests.test_layers import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a script with arguments in this process and returns what it printed."""

    def run(script: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_training_loop_scores_both_losses(run):
    lines = run("training_loop.py", "--steps", 2).splitlines()
    scores = [float(line.split("R@1 ")[1].split()[0]) for line in lines]
    assert len(scores) == 2
    assert all(0 < score < 1 for score in scores)


def test_a_dataset_from_a_csv_of_paths_and_labels(run, tmp_path):
    photos = class_folders(tmp_path / "photos", classes=16, images=4)
    paths = sorted(path.relative_to(photos) for path in photos.rglob("*.*"))
    labels = photos / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{path},{path.parts[-2]}\n" for path in paths), encoding="utf-8")
    settings = ("epochs=1", "side_px=32", "dim=16", "batch_size=8", "examples_per_class=2")
    lines = run("own_dataset.py", labels, "--out", tmp_path / "run", "--set", *settings).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["contrastive", "contrastive+embedding"]
    assert len(list((tmp_path / "run/records").glob("*.json"))) == 2
    rows = (photos / "manifest.csv").read_text(encoding="utf-8").splitlines()
    assert rows[:2] == ["path,label,split", "c00/0.png,c00,train"]
    assert sum(row.endswith(",test") for row in rows) == 8 * 4


def test_the_notebook_prints_what_is_stored_in_it(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    with zipfile.ZipFile(ROOT / "tests/harness/reports/guard/quick.zip") as archive:
        archive.extractall(tmp_path / "results/runs/quick")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "scores.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    pictures = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec("".join(cell["source"]), names)
        printed = capsys.readouterr().out
        assert printed == "".join(line for out in cell["outputs"] for line in out.get("text", []))
        pictures += sum("image/png" in out.get("data", {}) for out in cell["outputs"])
    assert pictures == 1
