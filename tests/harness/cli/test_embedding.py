"""After the benchmark: embed a folder and export a network, from a run folder alone."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from harness.cli import embedding, main
from harness.reports import neighbours
from harness.training.pictures import EMBEDDING_BATCH
from tests.harness.pictures import class_folders

ROOT = Path(__file__).parents[3]
GRID = """
name: photographs
datasets: [folder]
backbones: [test_resnet]
losses: [contrastive]
levels: [baseline]
floors: []
seeds: [0]
keep: weights
model: {dim: 16}
images: {side_px: 32}
training: {epochs: 1, batch_size: 8, examples_per_class: 2, lr: 1.0e-3, schedule: constant}
"""


def process(folder, *words):
    """Run a command in a process of its own; return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder with one trial, trained by the command line on images that are gone now."""
    folder = tmp_path_factory.mktemp("finished")
    class_folders(folder / "data", classes=12, images=4)
    (folder / "grid.yaml").write_text(GRID)
    code, text = process(
        folder, "trial", "grid.yaml", "--arm", "contrastive", "--data", "data", "--cache", "cache", "--out", "run"
    )
    assert code == 0, text
    (folder / "data").rename(folder / "moved away")
    shutil.rmtree(folder / "cache")
    (folder / "grid.yaml").unlink()
    return folder / "run"


@pytest.fixture
def photos(tmp_path):
    """Ten images at three depths, a text, and a file that only looks like an image."""
    folder = class_folders(tmp_path / "photos", classes=3, images=3)
    (folder / "c00/deeper").mkdir()
    Image.new("L", (20, 50), 90).save(folder / "c00/deeper/grey é.png")
    (folder / "notes.txt").write_text("x")
    return folder


def run_command(capsys, *words):
    code = main([*map(str, words)])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_process_that_knows_only_the_run_embeds_a_folder_and_exports(finished, photos, tmp_path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    words = ("embed", finished, "contrastive-s0", photos, "--neighbours", 2)
    code, text = process(elsewhere, *words)
    assert code == 0, text
    assert f"embedding {photos}: 10 of 10" in "".join(text.split("\n"))
    assert "10 images in embeddings.npz: 16 dimensions, by folder-test_resnet-contrastive-s0-" in text
    assert "ignored 1 files that are not images (notes.txt)" in text
    code, text = process(elsewhere, "export", finished, "contrastive-s0", "exported")
    assert code == 0, text
    assert "num_classes=16" in text
    with np.load(elsewhere / "embeddings.npz", allow_pickle=False) as stored:
        ids, embeddings, about = stored["ids"], stored["embeddings"], json.loads(str(stored["about"]))
    assert (embeddings.shape, embeddings.dtype) == ((10, 16), np.float32)
    assert ids.tolist() == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    exported = json.loads((elsewhere / "exported/model.json").read_text(encoding="utf-8"))
    assert about["weights"] == exported["weights"]["tested"]
    assert (about["trial"], about["run"]) == (exported["trial"]["id"], str(finished))
    lines = [
        "import sys; sys.modules |= dict.fromkeys(('harness', 'metrix', 'baselines'))",
        f"import json; files = json.loads({json.dumps(json.dumps([str(photos / id) for id in ids]))})",
        *exported["prepare"],
        *exported["usage"],
        "import numpy; numpy.save('by timm.npy', embeddings)",
    ]
    folder = elsewhere / "exported"
    done = subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(folder / "by timm.npy"), embeddings, atol=1e-5)


def test_parquet_has_the_same_as_npz(finished, photos, tmp_path, capsys):
    for name in ("some/e.npz", "some/e.parquet"):
        assert run_command(capsys, "embed", finished, "s0", photos, "--out", tmp_path / name, "--batch", 3)[0] == 0
    frame = pandas.read_parquet(tmp_path / "some/e.parquet")
    with np.load(tmp_path / "some/e.npz", allow_pickle=False) as stored:
        assert frame["id"].tolist() == stored["ids"].tolist()
        assert np.array_equal(np.stack(frame["embedding"].tolist()), stored["embeddings"])
        assert frame.attrs == json.loads(str(stored["about"]))


def test_neighbours_are_a_table_and_a_page(finished, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(neighbours, "MOST_QUERIES", 4)
    monkeypatch.setattr(neighbours, "MOST_NEIGHBOURS", 5)
    (photos / "c00/0.png").rename(photos / "c00/<b>.png")
    code, text = run_command(capsys, "embed", finished, "s0", photos, "--out", tmp_path / "e.npz", "--neighbours", 9)
    assert code == 0
    assert f"open {tmp_path}/e.neighbours.html in a browser" in text
    rows = list(csv.DictReader((tmp_path / "e.neighbours.csv").open(encoding="utf-8")))
    assert len(rows) == 10 * 9
    assert list(rows[0]) == ["id", "rank", "neighbour", "similarity"]
    assert all(row["id"] != row["neighbour"] for row in rows)
    of_first = [row for row in rows if row["id"] == rows[0]["id"]]
    assert [row["rank"] for row in of_first] == [str(rank) for rank in range(1, 10)]
    assert sorted((float(row["similarity"]) for row in of_first), reverse=True) == [
        float(row["similarity"]) for row in of_first
    ]
    page = (tmp_path / "e.neighbours.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img src="data:image/', page)) == 4 * 6
    assert "Shown: 4 of 10 images, evenly spaced" in page
    assert "the nearest 5 of 9 neighbours; e.neighbours.csv has all." in page
    assert "<b>" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_what_cannot_be_read_is_named_and_the_rest_written(finished, photos, tmp_path, capsys):
    (photos / "c01/broken.jpg").write_bytes(b"no image")
    out = tmp_path / "e.npz"
    code, text = run_command(capsys, "embed", finished, "s0", photos, "--out", out)
    assert code == 1
    assert "left out, because they cannot be read (1):\n  " in text
    assert "c01/broken.jpg: UnidentifiedImageError" in text
    with np.load(out, allow_pickle=False) as stored:
        assert len(stored["ids"]) == len(stored["embeddings"]) == 10
        assert np.isfinite(stored["embeddings"]).all()


def test_folders_without_readable_images_are_refused(finished, tmp_path, capsys):
    (bad := tmp_path / "bad").mkdir()
    (bad / "notes.txt").touch()
    out = ("--out", tmp_path / "e.npz")
    code, text = run_command(capsys, "embed", finished, "s0", bad, *out)
    assert (code, "no images in" in text, "notes.txt" in text) == (2, True, True)
    (bad / "broken.png").write_bytes(b"x")
    code, text = run_command(capsys, "embed", finished, "s0", bad, *out)
    assert (code, "none of the 1 images in" in text) == (2, True)
    code, text = run_command(capsys, "embed", finished, "s0", tmp_path / "nowhere", *out)
    assert (code, "there is no folder" in text) == (2, True)
    assert not (tmp_path / "e.npz").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--out", "e.csv"), "e.csv does not end in .npz or .parquet"),
        (("--out", "photos"), "photos does not end in"),
        (("--neighbours", "10"), "--neighbours 10 of 10 images: each has at most 9 others"),
        (("--neighbours", "0"), "'0' is not a whole number of at least 1"),
        (("--device", "gpu"), "no device 'gpu' on this machine"),
        (("--weights", "w.pth"), "has all of its weights in the run folder"),
    ],
)
def test_mistakes_are_named_before_work_starts(words, sentence, finished, photos, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["embed", str(finished), "s0", str(photos), *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_onnx_is_optional_unless_it_is_asked_for(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("harness.training.export._onnx", lambda *_: "no exporter")
    for words, expected in (((), 0), (("--onnx",), 1)):
        code, text = run_command(capsys, "export", finished, "s0", tmp_path / "exported", *words)
        assert (code, "no model.onnx: no exporter" in text) == (expected, True)
        assert (tmp_path / "exported/model.safetensors").exists()


def test_the_batch_that_help_shows_is_that_of_an_embedder():
    assert embedding.BATCH == EMBEDDING_BATCH
