"""Exports: what model.json says to run gives the same embeddings, in a process that does not know this program."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import Images
from harness.errors import UserError
from harness.training import checkpoint
from harness.training.embedder import Embedder
from harness.training.export import export
from harness.training.trained import Trained

HEAD, ANY = "one call of timm", "backbone and head"
NETWORKS = (  # how it is exported, and what it is
    (HEAD, {"backbone": "test_resnet", "pooling": "avg"}),
    (HEAD, {"backbone": "test_resnet", "pooling": "max"}),
    (HEAD, {"backbone": "test_resnet", "pooling": "avg+max"}),
    (HEAD, {"backbone": "test_efficientnet", "pooling": "avg"}),
    (HEAD, {"backbone": "test_vit", "pooling": "token"}),
    (HEAD, {"backbone": "test_vit", "pooling": "avg"}),
    (HEAD, {"backbone": "test_vit", "pooling": "avg+max"}),
    (HEAD, {"backbone": "test_vit3", "options": {"pool_include_prefix": False}}),  # timm would pool by attention
    (ANY, {"backbone": "test_vit3"}),  # timm would average the register tokens, too
    (ANY, {"backbone": "test_convnext", "pooling": "avg"}),  # timm's head has a norm
    (ANY, {"backbone": "test_convnext", "pooling": "avg+max"}),
    (ANY, {"backbone": "test_vit_relpos", "pooling": "max"}),
    (ANY, {"backbone": "test_vit", "pooling": "token", "hidden": 12}),
)
SIDE_PX = 64


@pytest.fixture
def trained(make_trial, make_record):
    """Return a function that makes a trained embedder with random weights."""

    def trained(backbone="test_resnet", pooling="avg", options=None, hidden=None, images=None):
        images = images or Images(side_px=SIDE_PX)
        network = Embedder(
            backbone,
            dim=8,
            pooling=pooling,
            options=options,
            pretrained=False,
            side_px=images.side_px,
            hidden=hidden,
            generator=0,
        )
        trial = make_trial(backbone=backbone).model_copy(update={"images": images})
        return Trained(network.requires_grad_(False).eval(), make_record(trial), torch.device("cpu"))

    return trained


def run_lines(folder, *lines):
    """Run lines of Python in a folder, where this program cannot be imported."""
    hidden = "import sys; sys.modules |= dict.fromkeys(('harness', 'metrix', 'baselines'))"
    code = "\n".join((hidden, *lines))
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_printed_lines_give_the_same_embeddings(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.training.export._onnx", lambda *_: "not asked for")
    images = torch.randn(3, 3, SIDE_PX, SIDE_PX)
    np.save(tmp_path / "images.npy", images)
    lines, expected = ["import numpy, os, torch; images = torch.tensor(numpy.load('images.npy'))"], []
    for number, (way, chosen) in enumerate(NETWORKS):
        embedder, folder = trained(**chosen), tmp_path / str(number)
        usage = export(embedder, folder).usage
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        assert tuple(about["usage"]) == usage
        assert (len(usage) == 3) == (way == HEAD), (chosen, usage)
        expected.append(embedder(images))
        lines += [f"os.chdir({str(folder)!r})", *usage, "numpy.save('embeddings.npy', embeddings)"]
    run_lines(tmp_path, *lines)
    for number, embeddings in enumerate(expected):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}/embeddings.npy"), embeddings, atol=1e-5)


TRANSFORMS = {
    "whole": Images(side_px=32),
    "crop": Images(side_px=70),
    "rounded": Images(side_px=227, cache_side_px=259),
    "classical": Images(side_px=70, path="classical"),
}


def test_timm_prepares_an_image_as_the_trial_did(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.training.export._onnx", lambda *_: "not asked for")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 110, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    lines = ["import numpy, os", "files = ['../one.png']"]
    for name, images in TRANSFORMS.items():
        export(trained(images=images), tmp_path / name)
        about = json.loads((tmp_path / name / "model.json").read_text(encoding="utf-8"))
        assert about["transform_note"].startswith("the same pixels")
        lines += [
            f"os.chdir({str(tmp_path / name)!r})",
            *about["prepare"],
            "numpy.save('images.npy', images.numpy())",
        ]
    run_lines(tmp_path, *lines)
    for name, images in TRANSFORMS.items():
        expected = trained(images=images).transform(tmp_path / "one.png")
        np.testing.assert_allclose(np.load(tmp_path / name / "images.npy")[0], expected, atol=1e-6)


def test_images_that_are_resized_twice_are_said_to_differ(trained, tmp_path):
    export(trained(images=Images(side_px=32, cache_side_px=64)), tmp_path)
    note = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["transform_note"]
    assert "resizes images twice: to 64 px (bilinear), then to 37 px" in note


def test_the_file_says_where_the_weights_come_from(trained, tmp_path):
    embedder = trained()
    export(embedder, tmp_path)
    about = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert about["trial"]["id"] == embedder.record.id
    assert about["scores"]["test"] == embedder.record.test
    assert about["weights"]["sha256"] == checkpoint.digest(tmp_path / "model.safetensors")
    assert "random initial weights" in about["licence"]
    assert about["network"]["dim"] == 8


def test_onnx_gives_the_same_embeddings_for_any_number_of_images(trained, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    embedder = trained()
    assert export(embedder, tmp_path).without_onnx is None
    images = torch.randn(5, 3, SIDE_PX, SIDE_PX)
    (found,) = runtime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, embedder(images), atol=1e-5)


def test_without_the_packages_of_the_exporter_the_rest_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "model.onnx").write_text("of another trial")
    written = export(trained(), tmp_path)
    assert written.without_onnx is not None
    assert "pip install onnx onnxscript" in written.without_onnx
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["onnx"] is None


def test_a_network_that_the_exporter_refuses_is_written_without_onnx(trained, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert export(trained(), tmp_path).without_onnx == "torch's exporter refuses this network (no such operator)"


def test_a_file_is_no_folder_to_export_to(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot export to .*file"):
        export(trained(), tmp_path / "file")
