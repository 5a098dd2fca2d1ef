"""A forward pass in chunks: the same numbers in less memory, and a trial that ran out of memory still finishes."""

import copy
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import baselines
import metrix
from harness.config import Choice, Images, Model
from harness.runs.run import Run
from harness.training import bench, checkpoint
from harness.training.chunked import Chunked, out_of_memory
from harness.training.embedder import Embedder, batch_norms
from harness.training.pictures import Sources
from harness.training.trial import run_trial, steps

LEVELS = {
    "plain": None,
    "embedding": {"at": "embedding"},
    "last map": {"at": "feature"},
    "layer3": {"at": "feature", "stage": "layer3"},
    "input": {"at": "input"},
}


def network(norm="frozen"):
    return Embedder("test_resnet", dim=8, norm=norm, pretrained=False, side_px=32, generator=0).double()


def batch(n=10):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 32, 32, dtype=torch.float64, generator=generator), torch.arange(n) // 2 % 4


def objective(level):
    loss = baselines.create("contrastive")
    if level is None:
        return loss
    return metrix.Metrix(loss, **level, generator=torch.Generator().manual_seed(2))


def gradients(model, level):
    images, labels = batch()
    loss = objective(level).objective(model, images, labels)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_embeddings_and_gradients_are_those_of_the_whole_batch(level):
    whole, parts = network(), Chunked(network(), 3)
    one, two = gradients(whole, level), gradients(parts, level)
    assert len(one) == len(two) > 10
    assert max((a - b).abs().max().item() for a, b in zip(one, two, strict=True)) < 1e-10
    images, _ = batch()
    with torch.no_grad():
        assert torch.allclose(whole.eval()(images), parts.eval()(images), rtol=0, atol=1e-10)
    assert parts.exact
    assert parts.state_dict().keys() == whole.state_dict().keys()
    assert parts.stages() == whole.stages()


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_running_statistics_are_updated_once_per_chunk(level):
    model = network("train")
    expected = copy.deepcopy(model)
    images, labels = batch()
    parts = Chunked(model, 5)
    if level and level.get("stage"):
        criterion = objective(level)
        criterion.objective(parts, images, labels).backward()
        assert {int(norm.get_buffer("num_batches_tracked")) for norm in batch_norms(model)} == {2}
    else:
        objective(level).objective(parts, images, labels).backward()
        for chunk in images.split(5):
            expected(chunk)
        for name, buffer in model.named_buffers():
            assert torch.allclose(buffer, expected.get_buffer(name), rtol=0, atol=1e-12), name
    assert not parts.exact
    assert all(norm.track_running_stats for norm in batch_norms(model))


def test_the_backward_pass_of_chunks_with_batch_norm_repeats_what_the_forward_did():
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3600, 4)
    )
    alone = copy.deepcopy(model)
    images = torch.rand(6, 3, 32, 32)
    torch.manual_seed(3)
    Chunked(model, 2)(images).square().sum().backward()
    torch.manual_seed(3)
    torch.cat([alone(chunk) for chunk in images.split(2)]).square().sum().backward()
    for one, two in zip(model.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_only_a_fraction_of_the_activations_is_kept(level):
    def kept(model):
        images, labels = batch(20)
        sizes = {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = objective(level).objective(model, images, labels)
        assert loss.requires_grad
        return sum(sizes.values())

    assert kept(Chunked(network(), 5)) < 0.5 * kept(network())


def test_a_chunk_needs_a_row():
    with pytest.raises(ValueError, match="rows is 0; a chunk needs at least one row"):
        Chunked(network(), 0)


def test_which_errors_mean_out_of_memory():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("could not create a primitive"))
    assert out_of_memory(
        RuntimeError("unable to mmap 12 bytes from file <best.safetensors>: Cannot allocate memory (12)")
    )
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError("out of memory"))


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="contrastive", norm: Any = "frozen", images=None, **training):
        trial = make_trial(arm, **{"epochs": 3, "lr": 1e-4, **training})  # at 1e-3 rounding grows to other scores
        changes = {"dataset": Choice(name="glyphs", options={"classes": 16}), "model": Model(dim=16, norm=norm)}
        return trial.model_copy(update={**changes, "keep": "weights", "images": images or trial.images})

    return tiny


@pytest.fixture
def small_memory(monkeypatch):
    """A network that takes at most so many rows from its call number `after` on, and what became of each network."""

    def limit(rows, after=0):
        made, calls = [], 0

        class Small(Embedder):
            def __init__(self, *args, **kwargs):
                gc.collect()
                assert all(other() is None for other in made), "the network that did not fit is still there"
                super().__init__(*args, **kwargs)
                made.append(weakref.ref(self))

            def forward(self, images):
                nonlocal calls
                calls += 1
                if len(images) > rows and calls > after:
                    raise torch.OutOfMemoryError(f"no memory for {len(images)} rows")
                return super().forward(images)

        monkeypatch.setattr(bench, "Embedder", Small)
        return made

    return limit


def test_a_trial_out_of_memory_continues_in_chunks_with_a_note(tiny, small_memory, tmp_path):
    trial = tiny()
    whole = run_trial(trial, tmp_path / "whole")
    made = small_memory(5)
    record = run_trial(trial, tmp_path / "parts")
    assert len(made) == 2
    assert record.notes == ("out of memory at epoch 1; the forward ran in chunks of 5 rows",)
    assert (record.provenance["chunk_rows"], record.provenance["batch_norm_rows"]) == (5, None)
    assert record.test == pytest.approx(whole.test, abs=1e-3)
    assert [e.loss for e in record.curve[1:]] == pytest.approx([e.loss for e in whole.curve[1:]], rel=1e-3)


def test_a_resumed_trial_still_uses_chunks(tiny, small_memory, tmp_path):
    trial = tiny(norm="train")
    first = steps(trial, Sources(tmp_path))
    next(first)
    first.close()
    small_memory(5)
    again = steps(trial, Sources(tmp_path))
    assert [next(again).epoch for _ in range(3)] == [1, 1, 2]  # begun at 1, out of memory, begun at 1 again
    again.close()
    _, meta = checkpoint.load(Run(tmp_path).checkpoints(trial) / "last.safetensors")
    assert meta["chunked"] == (2, 5)
    made = small_memory(5)
    record = run_trial(trial, tmp_path)
    assert len(made) == 1, "it goes on in chunks"
    note = "the forward ran in chunks of 5 rows, and BatchNorm took its statistics from each chunk"
    assert record.notes == (f"out of memory at epoch 2; {note}",)
    assert record.provenance["batch_norm_rows"] == 5


def test_running_out_of_memory_twice_is_an_error(tiny, small_memory, tmp_path):
    made = small_memory(4)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 5 rows"):
        run_trial(tiny(), tmp_path)
    assert len(made) == 2


def test_requested_chunks(tiny, tmp_path):
    trial = tiny("contrastive+feature")
    for _ in steps(trial, Sources(tmp_path, chunk_rows=7)):
        continue
    record = Run(tmp_path).record(trial)
    assert record is not None
    assert "the forward ran in chunks of 7 rows" in record.notes


LIMITED = """
import os, resource, shutil, sys
from pathlib import Path
from harness.config import Trial
from harness.training.bench import Bench
from harness.training.chunked import out_of_memory
from harness.training.trial import run_trial

train, trial = Bench.train, Trial.model_validate_json(sys.argv[1])

def limited(bench, *args, **how):  # what is in use when training begins, and so much more
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + room, resource.RLIM_INFINITY))
    yield from train(bench, *args, **how)

Bench.train = limited
room = 100 * 2**20
while room < 2**30:
    if os.fork() == 0:  # each attempt in a process of its own, whose heap holds nothing of the others
        try:
            run_trial(trial, sys.argv[2])
        except Exception as error:
            os._exit(3 if out_of_memory(error) else print(repr(error), file=sys.stderr) or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    if code not in (3, -11):  # too little: an error, or a library that does not check what it allocates
        sys.exit(code)
    shutil.rmtree(sys.argv[2])
    room = room * 6 // 5
sys.exit("no room was large enough")
"""


def test_a_processor_really_out_of_memory(tiny, tmp_path):
    """Give the training more memory until it finishes: chunks fit earlier than the batch, on any machine.

    Measured on one machine: chunks of 15 rows fit into 140 MB, and the batch of 60 does not fit into 200.
    """
    trial = tiny(epochs=1, batch_size=60, images=Images(side_px=96, crop_scale=(0.6, 1.0)))
    subprocess.run(
        [sys.executable, "-c", LIMITED, trial.model_dump_json(), str(tmp_path / "limited")],
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    record = Run(tmp_path / "limited").record(trial)
    assert record is not None
    assert record.notes == ("out of memory at epoch 1; the forward ran in chunks of 15 rows",)
    assert record.test == pytest.approx(run_trial(trial, tmp_path / "whole").test, abs=1e-3)
