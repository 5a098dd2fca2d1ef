"""Checkpoints come back bit for bit, or not at all."""

import errno
import hashlib
import math

import pytest
import torch
from torch import nn

from harness.training import checkpoint
from harness.training.checkpoint import CheckpointError


def trained(optimizer, steps=3):
    """A small network after some steps, and its optimiser."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optimizer([{"params": net[:2].parameters()}, {"params": net[2].parameters(), "lr": 0.01}])
    run(net, optimizer, steps)
    return net, optimizer


def run(net, optimizer, steps):
    for step in range(steps):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        net(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.Adam, lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)]
)
def test_an_optimiser_resumes_in_the_same_bits(tmp_path, optimizer):
    net, optim = trained(optimizer)
    checkpoint.save(tmp_path / "a.safetensors", {"net": net.state_dict(), "optim": optim.state_dict()}, {"epoch": 3})
    run(net, optim, 2)
    other, other_optim = trained(optimizer, steps=0)
    sections, meta = checkpoint.load(tmp_path / "a.safetensors")
    assert meta == {"epoch": 3}
    other.load_state_dict(sections["net"])
    other_optim.load_state_dict(sections["optim"])
    run(other, other_optim, 2)
    assert checkpoint.state_digest(other.state_dict()) == checkpoint.state_digest(net.state_dict())


def test_tensors_keep_type_shape_and_bits(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "zero": torch.tensor(0.0),
        "none": torch.zeros(0, 3),
        "nan": torch.tensor([math.nan, math.inf, -0.0, 5e-324], dtype=torch.double),
        "half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "generator": torch.Generator().manual_seed(1).get_state(),
        "base": base,
        "row": base[1],
        "transposed": base.T,
        "parameter": nn.Parameter(base.clone()),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    checkpoint.save(tmp_path / "a.safetensors", {"t": tensors}, {})
    loaded = checkpoint.load(tmp_path / "a.safetensors")[0]["t"]
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert loaded[name].shape == tensor.shape, name
        assert loaded[name].stride() == tensor.stride() or name in ("row", "transposed"), name
        same = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (loaded[name], tensor)]
        assert torch.equal(*same), name
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == len(loaded)


def test_data_between_the_tensors_keeps_its_types_and_keys(tmp_path):
    data = {
        "state": {0: {"step": 3}, 7: {}},
        "betas": (0.9, 0.999),
        "list": [1, [2.5, None], "three", True],
        "a/b": 1,
    }
    checkpoint.save(
        tmp_path / "a.safetensors", {"optimizer": data}, {"nested": data, "tiny": 1e-320, "inf": math.inf}
    )
    sections, meta = checkpoint.load(tmp_path / "a.safetensors")
    assert sections == {"optimizer": data}
    assert meta == {"nested": data, "tiny": 1e-320, "inf": math.inf}
    assert isinstance(sections["optimizer"]["betas"], tuple)
    assert isinstance(sections["optimizer"]["list"][3], bool)


def test_tied_tensors_are_stored_once_and_equal_names_are_kept_apart(tmp_path):
    tied = torch.randn(1000)
    sections = {"a": {"encoder": tied, "decoder": tied}, "m": {"x/y": torch.ones(1), "x": {"y": torch.zeros(1)}}}
    checkpoint.save(tmp_path / "a.safetensors", sections, {})
    loaded = checkpoint.load(tmp_path / "a.safetensors")[0]
    assert loaded["a"]["encoder"] is loaded["a"]["decoder"]
    assert (loaded["m"]["x/y"], loaded["m"]["x"]["y"]) == (torch.ones(1), torch.zeros(1))
    assert (tmp_path / "a.safetensors").stat().st_size < 1.5 * 4000


@pytest.mark.parametrize("content", [{"f": print}, {"o": object()}, {"s": {1}}, {(1, 2): 0}, {"b": b"pickle"}])
def test_anything_but_data_is_rejected_with_its_path(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"^model"):
        checkpoint.save(tmp_path / "a.safetensors", {"model": content}, {})
    assert not any(tmp_path.iterdir())


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"model": {"weight": torch.arange(100.0)}}, {"epoch": 1})
    return path


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file_is_named(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"last\.safetensors is truncated or corrupt"):
        checkpoint.load(saved)


@pytest.mark.parametrize("bit", [-1, -200, "epoch"])
def test_a_flipped_bit_is_found(saved, bit):
    content = bytearray(saved.read_bytes())
    content[content.index(b"epoch") if bit == "epoch" else bit] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.safetensors is corrupt"):
        checkpoint.load(saved)


def test_a_missing_file_or_another_format_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors is not a checkpoint of this version"):
        checkpoint.load(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*none\.safetensors"):
        checkpoint.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("fails", ["training.checkpoint.save_file", "runs.files.flush", "runs.files.os.replace"])
def test_a_full_disk_leaves_the_previous_checkpoint(saved, monkeypatch, fails):
    def full(*args, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0")
    monkeypatch.setattr(f"harness.{fails}", full)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*last\.safetensors: .*No space left"):
        checkpoint.save(saved, {"model": {}}, {"epoch": 2})
    monkeypatch.undo()
    assert checkpoint.load(saved)[1] == {"epoch": 1}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_process_killed_while_writing_leaves_the_previous_checkpoint(saved, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.runs.files.flush", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, {"model": {}}, {"epoch": 2})
    monkeypatch.undo()
    assert checkpoint.load(saved)[1] == {"epoch": 1}
    checkpoint.save(saved, {"model": {}}, {"epoch": 3})
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_remove_deletes_only_checkpoints(saved):
    (saved.parent / ".best.safetensors.part").touch()
    note = saved.parent / "note.txt"
    note.touch()
    checkpoint.remove(saved.parent)
    assert list(saved.parent.iterdir()) == [note]
    note.unlink()
    checkpoint.remove(saved.parent)
    checkpoint.remove(saved.parent)
    assert not saved.parent.exists()


def test_digests(saved):
    assert checkpoint.digest(saved) == hashlib.sha256(saved.read_bytes()).hexdigest()
    state = {"b": torch.zeros(2), "a": torch.tensor(1)}
    again = {"a": torch.tensor(1), "b": torch.zeros(4)[::2]}
    assert checkpoint.state_digest(state) == checkpoint.state_digest(again)
    for other in ({**state, "b": torch.zeros(1, 2)}, {**state, "b": torch.tensor([0.0, -0.0])}, {"b": state["b"]}):
        assert checkpoint.state_digest(other) != checkpoint.state_digest(state)
