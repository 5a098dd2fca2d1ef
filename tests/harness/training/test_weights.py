"""A weights file: what it is, what is unwrapped from it, and what a record says about it."""

import errno
import hashlib
import io
import re
import tarfile
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from harness.config import Backbone
from harness.data import datasets
from harness.data.datasets import DatasetError
from harness.errors import GridError
from harness.fairness import rules
from harness.grid import Grid
from harness.launch.queue import FINAL
from harness.leaderboard.compose import board_of
from harness.training.backbones import ModelError, Unavailable
from harness.training.bench import Unfair
from harness.training.embedder import Embedder
from harness.training.loop import Diverged
from harness.training.trial import kind_of, run_trial


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in timm.create_model("test_resnet").state_dict().items()}


def loaded(path):
    return Embedder("test_resnet", dim=4, side_px=32, generator=0, pretrained=path)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def tarred(path):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.pth")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))


def cut(path, state, share):
    whole = path.with_suffix(".whole")
    save_file(state, whole) if path.suffix == ".safetensors" else torch.save(state, whole)
    path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])


FILES = {
    "is empty": lambda path, state: path.write_bytes(b""),
    "is a git-lfs pointer, not the weights themselves: fetch them with git lfs pull": lambda path, state: (
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    ),
    "is a web page, not weights: the download returned a page instead of the file": lambda path, state: (
        path.write_text("\n<!DOCTYPE html><html><title>Sign in</title>")
    ),
    "is JSON, the index of weights in several files": lambda path, state: path.write_text('{"weight_map": {}}'),
    "is a zip archive (a.pth, b.txt): unpack it, and name the weights file in it": lambda path, state: zipped(
        path, **{"a.pth": b"1", "b.txt": b"2"}
    ),
    "is a tar archive (a.pth): unpack it": lambda path, state: tarred(path),
    "cannot be read (": lambda path, state: path.write_bytes(bytes(257) + b"ustar" + bytes(300)),
    "has a damaged header": lambda path, state: path.write_bytes((8).to_bytes(8, "little") + b'{"a": 1}'),
    "is an archive of numpy arrays (a.npy), not torch weights": lambda path, state: np.savez(
        path.open("wb"), a=np.zeros(1)
    ),
    "is a TorchScript program, not weights: save the state_dict of the module, if you trust": lambda path, state: (
        torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    ),
    "is a gzip archive: unpack it": lambda path, state: path.write_bytes(b"\x1f\x8b\x08\0\0"),
    "is an HDF5 file, as Keras writes them": lambda path, state: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)),
    "is text, not weights; it begins with 'not found'": lambda path, state: path.write_text("not found"),
    "is a pickle that would run code (fractions.Fraction) when it is read": lambda path, state: torch.save(
        {"state_dict": state, "lr": Fraction(1)}, path
    ),
    "is cut off: it has": lambda path, state: cut(path, state, 0.5),
    "contains no tensors, but epoch": lambda path, state: torch.save({"epoch": 3}, path),
    "contains this network 2 times, under 'first' and 'second': save the one": lambda path, state: torch.save(
        {"first": state, "second": state}, path
    ),
    "2 times, under 'module.left.' and 'module.right.'": lambda path, state: torch.save(
        under("module.left.", state) | under("module.right.", state), path
    ),
    "none of the 75 tensors of this network is in it; its names are x.a: the weights of another network": (
        lambda path, state: torch.save({"x.a": torch.zeros(1)}, path)
    ),
    "74 of the 75 tensors of this network are in it, 1 have another shape (conv1.0.weight (16, 1, 3, 3) instead of "
    "(16, 3, 3, 3))": lambda path, state: torch.save({**state, "conv1.0.weight": torch.zeros(16, 1, 3, 3)}, path),
    "under the prefix 'net.', 1 are missing (conv1.0.weight)": lambda path, state: torch.save(
        {name: tensor for name, tensor in under("net.", state).items() if name != "net.conv1.0.weight"}, path
    ),
    "1 belong to no layer of it (decoder.weight)": lambda path, state: torch.save(
        {**state, "decoder.weight": torch.zeros(1)}, path
    ),
}


@pytest.mark.parametrize("message", FILES)
def test_the_message_says_what_an_unloadable_file_is(tmp_path, state, message):
    path = tmp_path / "w.ckpt"
    FILES[message](path, state)
    with pytest.raises(ModelError) as error:
        loaded(path)
    assert f"the weights file {path}" in str(error.value)
    assert message in str(error.value)
    assert kind_of(error.value) == "refused"


def test_a_cut_safetensors_file_says_how_much_is_there(tmp_path, state):
    path = tmp_path / "w.safetensors"
    cut(path, state, 0.5)
    whole = path.with_suffix(".whole").stat().st_size
    with pytest.raises(ModelError, match=re.escape(f"is cut off: {whole // 2:,} of {whole:,} bytes")):
        loaded(path)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda state: state, None),
        (lambda state: {"model": state, "epoch": 9}, "read from 'model'"),
        (lambda state: {"state_dict": under("model.", state)}, "read from 'state_dict', prefix 'model.' stripped"),
        (lambda state: under("module.", state), "prefix 'module.' stripped"),
        (lambda state: under("module._orig_mod.backbone.", state), "prefix 'module._orig_mod.backbone.' stripped"),
        (lambda state: {"model": {"net": state}}, "read from 'model.net'"),
        (lambda state: {"averaged": state, "state_dict": state}, "read from 'state_dict', preferred to 'averaged'"),
        (
            lambda state: {**under("encoder.", state), "head.weight": torch.zeros(3), "head.bias": torch.zeros(3)},
            "prefix 'encoder.' stripped, 2 other tensors left out (head.weight, head.bias)",
        ),
        (lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")}, None),
        (lambda state: {**state, "fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)}, None),
        (lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, None),
    ],
)
def test_wrappers_are_unwrapped_and_reported(tmp_path, state, wrap, message):
    path = tmp_path / "w.bin"
    torch.save(wrap(state), path)
    model = loaded(path)
    assert model.weights_read == message
    assert torch.equal(model.backbone.get_parameter("conv1.0.weight"), state["conv1.0.weight"])
    assert torch.equal(model.backbone.state_dict()["layer4.0.bn2.running_var"], state["layer4.0.bn2.running_var"])


def test_a_header_length_that_looks_like_json_is_a_length(tmp_path, state):
    """123 is the code of an opening brace: a header of 123 + 256 n bytes begins with one."""
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    more = (123 - length) % 256
    path.write_bytes(
        (length + more).to_bytes(8, "little") + content[8 : 8 + length] + b" " * more + content[8 + length :]
    )
    assert path.read_bytes()[:1] == b"{"
    assert torch.equal(loaded(path).backbone.get_parameter("conv1.0.weight"), state["conv1.0.weight"])


def test_safetensors_are_recognised_by_their_content(tmp_path, state):
    save_file(state, tmp_path / "w.ckpt")
    assert torch.equal(loaded(tmp_path / "w.ckpt").backbone.get_parameter("conv1.0.weight"), state["conv1.0.weight"])


def test_permanent_errors_are_not_retried(tmp_path):
    assert {"refused", "diverged", "out of memory"} == set(FINAL)
    for error in (ModelError("x"), DatasetError("x"), Unfair("x"), GridError("g", ["x"])):
        assert kind_of(error) == "refused"
    assert kind_of(Diverged("x")) == "diverged"
    damaged = DatasetError("image.png cannot be read")
    damaged.__cause__ = OSError("image file is truncated")
    assert kind_of(damaged) == "refused"
    passing = DatasetError("image.png cannot be read")
    passing.__cause__ = OSError(errno.ESTALE, "stale file handle")
    with pytest.raises(DatasetError) as gone:
        datasets.load("folder", tmp_path / "unmounted")
    with pytest.raises(ModelError) as elsewhere:
        loaded(tmp_path / "elsewhere.pth")
    for error in (
        passing,
        gone.value,
        elsewhere.value,
        Unavailable("offline"),
        OSError("disk"),
        RuntimeError("cuda"),
        ValueError("bug"),
    ):
        assert kind_of(error) == "error"


GRID = """
name: g
datasets: [{{name: glyphs, options: {{classes: 24}}}}]
backbones: [{{name: test_resnet.r160_in1k, pretrained: {path}{more}}}]
losses: [contrastive]
levels: [baseline]
floors: []
seeds: [0]
model: {{dim: 8}}
images: {{side_px: 32}}
training: {{epochs: 1, batch_size: 8, examples_per_class: 2, lr: 1.0e-3, schedule: constant}}
"""


@pytest.fixture
def recorded(tmp_path, state, drawn):
    def recorded(pretrained, more="", keep=""):
        (tmp_path / "g.yaml").write_text(GRID.format(path=pretrained, more=more) + keep)
        (trial,) = Grid.load(tmp_path / "g.yaml").trials()
        return run_trial(trial, tmp_path / "run", cache=drawn)

    return recorded


def test_a_record_names_the_file_and_how_its_images_were_prepared(recorded, tmp_path, state):
    path = tmp_path / "mine.safetensors"
    save_file(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = recorded(path, ", mean: [0.5, 0.5, 0.5], std: [0.25, 0.5, 0.5], interpolation: bicubic")
    origin = record.provenance
    assert (origin["weights"], origin["initial_weights"]) == ("mine.safetensors", digest)
    used = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "interpolation": "bicubic", "config": None}
    assert origin["normalisation"] == used
    assert record.weights == f"mine.safetensors (sha256 {digest[:12]})"
    (block,) = board_of([record]).blocks
    network = next(sentence for sentence in block.caption if sentence.startswith("Network"))
    assert network.startswith(
        f"Network: test_resnet, weights of the file {record.weights}, images normalised by mean 0.5 0.5 0.5 and std "
        "0.25 0.5 0.5, bicubic, fine-tuned as a whole, avg pooling"
    )
    assert block.heading == "glyphs · test_resnet", "no tag that was not loaded"
    plain = recorded(path)
    assert plain.provenance["normalisation"]["config"] == "test_resnet.r160_in1k"
    assert plain.validation != record.validation
    found = rules.over_records([record, plain])
    (message,) = [finding.sentence for finding in found if finding.rule == "FAIR-08"]
    assert "backbone.interpolation = " in message
    assert "backbone.mean = " in message
    assert not any("which weights" in f.sentence for f in found)
    lost = record.model_copy(update={"provenance": {**origin, "initial_weights": None}})
    assert any("which weights were loaded is not recorded" in f.sentence for f in rules.over_records([lost]))


def test_a_network_of_another_run_is_trained_further(recorded, tmp_path):
    """Its backbone is the initial one; head and proxies stay behind, and the record says so."""
    first = recorded("false", keep="keep: weights\n")
    (path,) = (tmp_path / "run" / "checkpoints").rglob("best.safetensors")
    record = recorded(path)
    assert record.provenance["weights_read"].startswith("read from 'model', prefix 'backbone.' stripped, 2 other")
    assert record.provenance["initial_weights"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.validation != first.validation


def test_an_untrained_network_has_no_weights_tag(recorded):
    record = recorded("false")
    assert record.provenance["weights"] is None
    assert record.weights is None
    (block,) = board_of([record]).blocks
    assert any(sentence.startswith("Network: test_resnet, random initial weights, avg") for sentence in block.caption)


def test_older_records_are_read_correctly(make_trial, make_record):
    """They name timm's tag whatever was loaded."""
    origin = {"weights": "test_resnet.r160_in1k", "initial_weights": "ab" * 32}
    names = {}
    for pretrained in (True, False, "there/mine.pth"):
        trial = make_trial().model_copy(update={"backbone": Backbone(name="test_resnet", pretrained=pretrained)})
        names[pretrained] = make_record(trial, provenance=origin).weights
    assert names == {True: "test_resnet.r160_in1k", False: None, "there/mine.pth": "mine.pth (sha256 abababababab)"}


def test_image_settings_enter_the_digest_only_if_set(make_trial):
    trial = make_trial()
    assert trial.digest == "05b422a5b02fd9f827024874482e9de14ba36a124cdbc3cd2b874dffdfe74829"
    backbone = Backbone(name="test_resnet", mean=(0.5, 0.5, 0.5))
    other = trial.model_copy(update={"backbone": backbone})
    assert other.digest != trial.digest
    assert other.shared["backbone.mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("wrong", ["mean: [127.5, 127.5, 127.5]", "std: [0, 1, 1]", "interpolation: nearest"])
def test_invalid_preparation_is_rejected(tmp_path, wrong):
    (tmp_path / "g.yaml").write_text(GRID.format(path="false", more=f", {wrong}"))
    with pytest.raises(GridError, match=r"backbones.0.(mean|std|interpolation)"):
        Grid.load(tmp_path / "g.yaml")
