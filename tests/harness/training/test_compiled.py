"""A compiled training: close to the plain one, with its checkpoints and its scores, or refused in words."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from harness.config import Backbone, Choice, Training
from harness.fairness.comparability import Entry, comparable_tables, distinguishing
from harness.launch.preflight import uncompilable
from harness.runs.run import Run
from harness.training import checkpoint, compiled
from harness.training.devices import DeviceError
from harness.training.embedder import Embedder
from harness.training.pictures import Sources
from harness.training.trial import run_trial, steps

NO_COMPILER = "training.compile is network, but there is no compiler g++ on the PATH: install one, or choose none"


@pytest.fixture
def tiny(make_trial, monkeypatch, tmp_path):
    """Return a function that makes a small trial on few glyphs, compiled in a cache of its own."""
    for name in (compiled.THREADS, "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(
        compiled.FOLDER, f"{tempfile.gettempdir()}/torchinductor_me"
    )  # as torch sets it, unless a user does
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch._dynamo.reset()
    counters.clear()

    def tiny(arm="contrastive", compile="network", backbone="test_resnet", options=None, **changes):
        trial = make_trial(arm, compile=compile, **changes)
        network = Backbone(name=backbone, options=options or {})
        few = Choice(name="glyphs", options={"classes": 16})
        return trial.model_copy(update={"dataset": few, "backbone": network, "keep": "weights"})

    return tiny


@pytest.fixture
def traced(monkeypatch):
    """Let torch trace networks and their gradients, without the compiler that takes most of the time."""
    whole = torch.compile
    monkeypatch.setattr(
        compiled.torch,
        "compile",
        lambda function, dynamic=None, options=None: whole(function, dynamic=dynamic, backend="aot_eager"),
    )


def losses(record):
    return [epoch.loss for epoch in record.curve[1:]]


def learned(run, trial):
    sections, _ = checkpoint.load(Run(run).checkpoints(trial) / "last.safetensors")
    return sections["model"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_it_trains_like_the_plain_network_and_an_interrupted_trial_ends_in_the_same_bits(tiny, tmp_path):
    small = {"backbone": "test_vit", "options": {"depth": 1}, "lr": 1e-4}
    plain, trial = tiny(compile="none", **small), tiny(**small)
    expected, found = run_trial(plain, tmp_path / "plain"), run_trial(trial, tmp_path / "compiled")
    assert losses(found) == pytest.approx(losses(expected), rel=1e-3)
    assert found.test["MAP@R"] == pytest.approx(expected.test["MAP@R"], abs=0.02)
    assert found.curve[0].validation == expected.curve[0].validation  # scored by the plain network
    assert counters["stats"]["unique_graphs"] == 1
    weights, others = learned(tmp_path / "compiled", trial), learned(tmp_path / "plain", plain)
    assert weights.keys() == others.keys()
    assert (tmp_path / "cache/metrix-bench/compiled").is_dir()

    said = []
    next(steps(trial, Sources(tmp_path / "parts"), said.append))
    assert said == ["the first epoch takes minutes longer: torch compiles the network"]
    again = run_trial(trial, tmp_path / "parts")
    assert losses(again) == losses(found)
    assert again.test == found.test
    parts = learned(tmp_path / "parts", trial)
    assert all(torch.equal(parts[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("arm", "graphs"),
    [
        ("contrastive", 2),  # during head warm-up and after it
        ("contrastive+embedding", 2),
        ("contrastive+feature", 2),
        ("contrastive+input", 4),  # mixed images change no statistics
    ],
)
def test_each_level_trains_as_it_does_plainly_and_compiles_a_few_times(arm, graphs, tiny, traced, tmp_path):
    records = [
        run_trial(tiny(arm, compile, warmup_epochs=1, lr=1e-4), tmp_path / compile) for compile in ("none", "network")
    ]
    assert losses(records[1]) == pytest.approx(losses(records[0]), rel=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not any("uncompiled" in note for note in records[1].notes)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(tiny, traced, tmp_path):
    staged = "contrastive+feature[stage=layer3]"
    plain = run_trial(tiny(staged, "none", epochs=1), tmp_path / "plain")
    record = run_trial(tiny(staged, epochs=1), tmp_path / "compiled")
    assert losses(record) == losses(plain)
    assert "with rows mixed at layer3 the network ran uncompiled" in record.notes
    chunked = tiny(epochs=1)
    list(steps(chunked, Sources(tmp_path / "chunks", chunk_rows=7), lambda _: None))
    assert (record := Run(tmp_path / "chunks").record(chunked)) is not None
    assert "in chunks the network ran uncompiled" in record.notes
    assert counters["stats"]["unique_graphs"] == 0


def test_a_process_compiles_for_every_trial_that_it_runs(tiny, traced, tmp_path):
    """torch compiles at most eight versions of a function, then runs it as it is."""
    for seed in range(3):
        counters.clear()
        run_trial(tiny(seed=seed, epochs=1), tmp_path / "run")
        assert counters["stats"]["unique_graphs"] == 1


def test_only_training_passes_without_hooks_are_compiled():
    model = Embedder("test_resnet", dim=4, pretrained=False, side_px=32, generator=0)
    passed, images = [], torch.rand(3, 3, 32, 32)
    model.compiled = lambda rows: passed.append(len(rows)) or model.backbone.forward_features(rows)
    model(images)
    assert passed == [3]
    model.eval()(images)
    model.train().forward_joint("layer3", images, lambda maps: maps)
    handle = next(model.backbone.children()).register_forward_pre_hook(lambda *_: None)
    model(images)
    assert passed == [3]
    handle.remove()
    model(images)
    assert passed == [3, 3]


def test_what_is_compiled_is_kept_in_the_cache_unless_the_user_names_a_folder(tiny, monkeypatch):
    network = tiny(threads=3).training
    compiled.prepare(network, Path("/cache"))
    assert os.environ[compiled.FOLDER] == "/cache/compiled"
    assert inductor.compile_threads == 3
    monkeypatch.setenv(compiled.FOLDER, "/mine")
    monkeypatch.setenv(compiled.THREADS, "9")
    compiled.prepare(network.model_copy(update={"threads": 2}), Path("/cache"))
    assert os.environ[compiled.FOLDER] == "/mine"
    assert inductor.compile_threads == 3


def test_a_time_limit_leaves_room_for_compiling():
    assert compiled.limit_s([Training(), Training(compile="network")], 60.0) == 1860.0
    assert compiled.limit_s([Training()], 60.0) == 60.0


def test_machines_that_cannot_compile_are_refused(monkeypatch, tmp_path):
    network, graphs = Training(compile="network"), Training(compile="cuda_graphs")
    assert compiled.problem(Training(), "cpu") is None
    assert compiled.problem(graphs, "cpu") == (
        "training.compile is cuda_graphs, but the trial runs on cpu, which has no CUDA graphs: choose network or none"
    )
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert compiled.problem(graphs, "cuda") == (
        "training.compile is cuda_graphs, but torch cannot compile for a GPU without triton: pip install triton, or "
        "choose none"
    )
    monkeypatch.setattr(compiled, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiled.problem(network, "cpu") == NO_COMPILER
    assert compiled.problem(network, "cuda") == (
        "training.compile is network, but there is no compiler gcc or clang on the PATH: install one, or choose none"
    )
    monkeypatch.setenv("CXX", "my++")
    assert compiled.problem(network, "cpu") == NO_COMPILER.replace("g++", "my++")


def test_a_trial_is_refused_before_it_begins(tiny, frozen, data, monkeypatch, tmp_path):
    with pytest.raises(DeviceError, match=r"works on one device, but ranks = 2: use 1, or choose none"):
        next(steps(tiny(), Sources(tmp_path / "run", ranks=2)))
    with pytest.raises(DeviceError, match=r"compile is network, but the backbone is frozen: choose none"):
        next(steps(frozen(compile="network"), Sources(tmp_path / "run", data)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="there is no compiler"):
        next(steps(tiny(), Sources(tmp_path / "run", device="cpu")))
    assert uncompilable([tiny().training], "cpu") == [NO_COMPILER]


def test_it_is_a_shared_factor(make_trial):
    plain, compiled_one = make_trial(), make_trial(compile="network")
    assert plain.id != compiled_one.id
    entries = [Entry(("glyphs", "r"), "contrastive", "baseline", 0, t.shared, True, t) for t in (plain, compiled_one)]
    tables = comparable_tables(entries)
    assert [distinguishing(table, tables) for table in tables] == [
        (("training.compile", "network"),),
        (("training.compile", "none"),),
    ]
