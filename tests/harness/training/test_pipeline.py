"""Batches that are prepared ahead have the same bits, and no thread outlives an epoch, whatever ends it."""

import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from harness.config import Images
from harness.data.datasets import DatasetError
from harness.errors import GridError
from harness.runs.run import Run
from harness.training import bench as benches
from harness.training import loop
from harness.training.bench import Bench
from harness.training.pictures import Sources
from harness.training.pipeline import AHEAD, IN_TURN, Pipeline
from harness.training.trial import steps
from tests.harness.training.interrupted import outcome

CPU = torch.device("cpu")
WAYS = {
    "decoded in threads": Pipeline(workers=3),
    "ahead": Pipeline(AHEAD, 1, finishes=True),
    "far ahead": Pipeline(7, 3, finishes=True),
    "ahead, finished in turn": Pipeline(AHEAD, 2),
}


@pytest.fixture
def through(monkeypatch):
    """Let trials prepare their batches in one way."""

    def through(way):
        monkeypatch.setattr(benches, "pipeline_of", lambda *_: way)

    return through


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def run(trial, out, data, epochs=None):
    """The record of a trial, or None if it stops after some epochs."""
    running = steps(trial, Sources(out, data))
    for epoch, _ in enumerate(running, 1):
        if epoch == epochs:
            running.close()
            return None
    return Run(out).record(trial)


def bits(record):
    return *outcome(record), record.provenance["tested_weights"]


def on(path, trial):
    return trial.model_copy(update={"images": Images(side_px=16, cache_side_px=16, path=path)})


@pytest.fixture(params=["cache", "classical", "frozen", "views"])
def any_trial(request, folder_trial, frozen):
    if request.param in ("cache", "classical"):
        return on(request.param, folder_trial("proxy_anchor+input"))
    return frozen(images={"views": 3 if request.param == "views" else 1})


def test_a_trial_ends_in_the_same_bits_however_its_batches_are_prepared(any_trial, data, tmp_path, through):
    through(IN_TURN)
    expected = bits(run(any_trial, tmp_path / "in turn", data))
    for name, way in WAYS.items():
        through(way)
        assert bits(run(any_trial, tmp_path / name, data)) == expected, name


@pytest.mark.parametrize("path", ["cache", "classical"])
def test_a_trial_resumes_in_another_way(path, folder_trial, data, tmp_path, through):
    trial = on(path, folder_trial())
    through(IN_TURN)
    expected = run(trial, tmp_path / "whole", data)
    for way, epochs in ((WAYS["ahead, finished in turn"], 1), (IN_TURN, 2), (WAYS["far ahead"], None)):
        through(way)
        resumed = run(trial, tmp_path / "parts", data, epochs)
    assert bits(resumed) == bits(expected)


@pytest.mark.parametrize("way", [IN_TURN, *WAYS.values()], ids=["in turn", *WAYS])
def test_an_image_that_cannot_be_read_is_named(way, folder_trial, data, tmp_path, through):
    through(way)
    bench = Bench.of(on("classical", folder_trial(sampler="shuffle")), Sources(tmp_path, data))
    training = bench.split_images("train").indices
    broken = bench.dataset.keys[training[len(training) // 2]]
    (data / broken).write_bytes(b"no image")
    with pytest.raises(DatasetError, match=f"^{re.escape(broken)}: "):
        list(bench.train(bench.criterion(), lambda: ({"MAP@R": 0.0}, {}), tmp_path))
    with pytest.raises(DatasetError, match=f"^{re.escape(broken)}: "):
        bench.embed(training)


@pytest.mark.parametrize("path", ["cache", "classical"])
def test_an_interrupt_within_a_step_ends_all_threads(path, folder_trial, data, tmp_path, through, monkeypatch):
    step, before, within = loop._step, threading.active_count(), []

    def interrupted(*arguments):
        within.append(threading.active_count())
        if len(within) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", interrupted)
    through(Pipeline(AHEAD, 2))
    with pytest.raises(KeyboardInterrupt):
        run(on(path, folder_trial()), tmp_path, data)
    assert within[1] > before
    assert threading.active_count() == before


def test_an_interrupt_within_validation_ends_all_threads(folder_trial, data, tmp_path, through, monkeypatch):
    through(Pipeline(AHEAD, 2))
    bench = Bench.of(folder_trial(), Sources(tmp_path, data))
    before, within = threading.active_count(), []

    def forward(module, rows):
        within.append(threading.active_count())
        raise KeyboardInterrupt

    bench.model.register_forward_pre_hook(forward)
    with pytest.raises(KeyboardInterrupt):
        replace(bench, embedding_batch=8).embed(torch.arange(60))
    assert within[0] > before
    assert threading.active_count() == before


def test_no_more_batches_exist_than_may():
    alive, most, lock = 0, 0, threading.Lock()

    class Batch:
        def __init__(self):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    for _ in Pipeline(3, 4).run(lambda item, each: Batch(), lambda batch: batch, range(50), CPU):
        time.sleep(0.001)
    assert alive <= 1
    assert most <= 3 + 2  # ahead, the one that is waited for, and the last, which the caller still holds


def test_processors_that_do_not_train_prepare_batches():
    cuda = torch.device("cuda")
    assert Pipeline.of(CPU, processors=1, threads=1) == IN_TURN == Pipeline(0, 1)
    assert Pipeline.of(CPU, processors=2, threads=1) == Pipeline(AHEAD, 1, finishes=True)
    assert Pipeline.of(CPU, processors=16, threads=4) == Pipeline(AHEAD, 12, finishes=True)
    assert Pipeline.of(CPU, processors=7, threads=4) == Pipeline(0, 4)
    assert Pipeline.of(CPU, processors=0, threads=1) == IN_TURN
    assert Pipeline.of(cuda, processors=16, threads=1) == Pipeline(AHEAD, 16)
    assert Pipeline.of(cuda, processors=0, threads=1) == Pipeline(AHEAD, 1)
    assert Sources("", ranks=2, processors=5).processors_per_rank == 2


def test_a_trial_with_one_processor_and_a_frozen_one_start_no_thread(folder_trial, frozen, data, tmp_path):
    assert Bench.of(folder_trial(), Sources(tmp_path, data, processors=1)).pipeline == IN_TURN
    assert Bench.of(folder_trial(), Sources(tmp_path, data, processors=2)).pipeline == Pipeline(AHEAD, 1, True)
    assert Bench.of(frozen(), Sources(tmp_path, data, processors=8)).pipeline == IN_TURN


def test_a_gpu_gets_batches_on_a_stream_of_their_own(monkeypatch):
    """Streams are stand-ins; what they are told, and when, is what counts."""
    told, here = [], threading.local()

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            assert here.stream is self
            return f"event {here.item}"

        def wait_event(self, event):
            told.append((self.name, "waits for", event))

    @contextmanager
    def within(stream):
        here.stream = stream
        yield
        here.stream = None

    def read(item, each):
        assert here.stream is side
        here.item = item
        return [torch.full((2,), item), (torch.full((1,), -item), "a generator")]

    def finish(rows):
        assert not hasattr(here, "stream")
        told.append(("finished", int(rows[0][0])))
        return rows[0]

    side, main = Stream("side"), Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: told.append((stream.name, "uses", int(tensor[0])))
    )
    found = [int(rows[0]) for rows in Pipeline(AHEAD, 2).run(read, finish, range(1, 4), torch.device("cuda"))]
    assert found == [1, 2, 3]
    assert told == [
        line
        for item in (1, 2, 3)
        for line in (
            ("main", "waits for", f"event {item}"),
            ("main", "uses", item),
            ("main", "uses", -item),
            ("finished", item),
        )
    ]


def on_gpu_decoder(trial):
    images = Images(side_px=16, cache_side_px=16, path="classical", decoder="torchvision-gpu")
    return trial.model_copy(update={"images": images})


def test_a_decoder_that_the_machine_lacks_is_refused(folder_trial, data, tmp_path, make_trial):
    with pytest.raises(GridError, match="it needs an NVIDIA GPU, and the trial runs on cpu") as caught:
        Bench.of(on_gpu_decoder(folder_trial()), Sources(tmp_path, data, device="cpu"))
    assert str(caught.value).startswith("images.decoder torchvision-gpu: ")
    with pytest.raises(GridError, match="it reads image files, which glyphs does not have"):
        Bench.of(on_gpu_decoder(make_trial()), Sources(tmp_path, data, device="cpu"))


def test_a_trial_trains_on_images_that_a_device_has_decoded(folder_trial, data, tmp_path, monkeypatch):
    """The processor stands in for the GPU."""
    monkeypatch.setattr(benches, "gpu_decoder_problem", lambda device: None)
    on_device = run(on_gpu_decoder(folder_trial()), tmp_path / "on device", data)
    by_pillow = run(on("classical", folder_trial()), tmp_path / "by pillow", data)
    assert on_device is not None
    assert by_pillow is not None
    assert on_device.trial.images.decoder == "torchvision-gpu"
    assert on_device.trial.id != by_pillow.trial.id
    differing = {k for k, v in on_device.trial.shared.items() if by_pillow.trial.shared[k] != v}
    assert differing == {"images.decoder"}
    losses = [[epoch.loss for epoch in record.curve[1:]] for record in (on_device, by_pillow)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
