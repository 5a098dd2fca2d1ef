"""Features of a frozen backbone: their values, their file, and what interrupts, damages or repeats it."""

import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import Backbone
from harness.data.cache import CacheError
from harness.training.features import FOOTER, Source, Views, features_path, open_features
from harness.training.pictures import open_dataset
from tests.harness.pictures import class_folders

ROOT = Path(__file__).parents[3]
COUNT, WIDTH, BATCH = 10, 3, 4  # of the made-up features: batches of 4, 4 and 2 images
ABOUT = {"width": WIDTH, "weights": "w", "images": "i"}


class Made:
    """A source of made-up features that counts its batches, and may fail at one of them."""

    def __init__(self, fail_at=None, views=1, about=ABOUT):
        self.opened, self.starts, self.fail_at, self.views, self.about = 0, [], fail_at, views, about

    def __call__(self):
        self.opened += 1
        return Source("made-up features", self.about, self.views, self.rows, BATCH)

    def rows(self, parts):
        for which in parts:
            if which.start == self.fail_at:
                raise RuntimeError("stopped")
            self.starts.append(which.start)
            yield np.random.default_rng(which.start).random((len(which), self.views, WIDTH), np.float32)


@pytest.fixture
def whole(tmp_path):
    """The bytes of a file that was computed without interruption."""
    open_features(tmp_path / "whole.bin", COUNT, Made())
    return (tmp_path / "whole.bin").read_bytes()


def test_the_file_is_named_by_all_that_its_numbers_depend_on_and_nothing_else(frozen, data, weights_of, tmp_path):
    trial = frozen()

    def path(trial, folder=data):
        return features_path(trial, open_dataset(trial.dataset, folder), tmp_path)

    def changed(**sections):
        """The path of the trial with other values in its sections."""
        return path(trial.model_copy(update={k: getattr(trial, k).model_copy(update=v) for k, v in sections.items()}))

    copy = shutil.copy(weights_of(), tmp_path / "another name.safetensors")
    same = [
        *(changed(backbone={"pretrained": str(copy)}), changed(images={"crop_scale": (0.5, 1.0), "flip": False})),
        *(changed(model={"dim": 4, "hidden": 8}), changed(model={"norm": "frozen"}), changed(training={"lr": 1.0})),
        *(path(frozen("proxy_anchor+feature", 3)), path(frozen("features")), path(frozen(epochs=1))),
    ]
    assert set(same) == {path(trial)}
    views: dict[str, Any] = {"views": 3}
    other = [
        *(changed(backbone={"pretrained": weights_of(seed=1)}), changed(backbone={"mean": (0.5, 0.5, 0.5)})),
        *(changed(backbone={"interpolation": "bilinear"}), changed(backbone={"options": {"drop_rate": 0.1}})),
        *(path(frozen(network="test_vit")), changed(model={"pooling": "max"}), changed(images={"side_px": 32})),
        *(changed(images={"cache_side_px": 80}), changed(images={"path": "classical"}), changed(images=views)),
        *(changed(images={**views, "crop_scale": (0.5, 1.0)}), changed(images={**views, "flip": False})),
        path(trial, class_folders(tmp_path / "others", classes=12, images=5, shade=9)),
    ]
    assert len({path(trial), *other}) == 1 + len(other)


def test_published_weights_are_named_without_timm(frozen, data, tmp_path):
    published = frozen().model_copy(update={"backbone": Backbone(name="test_resnet", pretrained=True)})
    file = frozen()
    paths = {features_path(trial, open_dataset(trial.dataset, data), tmp_path) for trial in (published, file)}
    assert len(paths) == 2


def test_a_second_opening_computes_nothing(tmp_path, whole):
    source = Made()
    found = open_features(tmp_path / "whole.bin", COUNT, source)
    assert (source.opened, len(found), found.array.shape, dict(found.about)) == (0, COUNT, (COUNT, 1, WIDTH), ABOUT)
    expected = np.concatenate(list(Made().rows(range(i, min(i + BATCH, COUNT)) for i in (0, 4, 8))))
    np.testing.assert_array_equal(found.array, expected)
    np.testing.assert_array_equal(found.batch(torch.tensor([9, 0, 9])), expected[[9, 0, 9]])


def test_the_work_is_announced_with_its_size_and_counted(tmp_path):
    said, counted = [], []
    open_features(tmp_path / "a.bin", COUNT, Made(), said.append, lambda *counts: counted.append(counts))
    assert said[0].startswith("made-up features takes about 0.00 GB and ")
    assert said[0].endswith(" GB left: computing the features of 10 images")
    assert counted == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("left", [b"", b"half a row"], ids=["whole batches", "a torn batch"])
def test_an_interrupted_computation_continues_after_its_last_whole_batch(tmp_path, whole, left):
    path, said = tmp_path / "a.bin", []
    with pytest.raises(RuntimeError, match="stopped"):
        open_features(path, COUNT, Made(fail_at=8))
    assert not path.exists()
    with open(tmp_path / ".a.bin.part", "ab") as part:
        part.write(left)
    source = Made()
    open_features(path, COUNT, source, said.append)
    assert source.starts == [8]
    assert "computing the features of 2 images, after 8 that are done" in said[0]
    assert path.read_bytes() == whole


def test_a_file_that_was_not_renamed_any_more_is_completed(tmp_path, whole):
    """The process died between the last byte and the rename: only the last, incomplete batch is computed again."""
    (tmp_path / ".a.bin.part").write_bytes(whole)
    source = Made()
    open_features(tmp_path / "a.bin", COUNT, source)
    assert (source.starts, (tmp_path / "a.bin").read_bytes()) == ([8], whole)


PROCESS = """
import os, signal, sys, time
from pathlib import Path
from harness.training.features import open_features
from tests.harness.training.test_features import COUNT, Made

class Slow(Made):
    def rows(self, parts):
        for which in parts:
            with open(sys.argv[2], "a") as log:
                log.write(f"{which.start}\\n")
            time.sleep(0.2)
            if str(which.start) == sys.argv[3]:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().rows([which])

open_features(Path(sys.argv[1]), COUNT, Slow())
"""


def process(path, log, killed_at="never"):
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(path), str(log), killed_at], cwd=ROOT)


def test_a_killed_process_leaves_its_whole_batches(tmp_path, whole):
    path, log = tmp_path / "a.bin", tmp_path / "log"
    assert process(path, log, killed_at="8").wait() == -signal.SIGKILL
    assert not path.exists()
    source = Made()
    open_features(path, COUNT, source)
    assert (log.read_text().split(), source.starts) == (["0", "4", "8"], [8])
    assert path.read_bytes() == whole


def test_two_processes_compute_once(tmp_path, whole):
    path, log = tmp_path / "a.bin", tmp_path / "log"
    assert [each.wait() for each in [process(path, log) for _ in range(2)]] == [0, 0]
    assert log.read_text().split() == ["0", "4", "8"]
    assert path.read_bytes() == whole


def test_a_killed_holder_of_the_lock_lets_the_waiting_process_continue(tmp_path, whole):
    path, log = tmp_path / "a.bin", tmp_path / "log"
    both = [process(path, log, killed_at="4"), process(path, log)]
    assert sorted(each.wait() for each in both) in ([-signal.SIGKILL, 0], [0, 0])
    assert path.read_bytes() == whole


def flipped(place):
    def damage(content):
        content[place] ^= 1
        return content

    return damage


DAMAGES = {
    "a byte of the first image": flipped(0),
    "a byte of the last image": flipped(COUNT * WIDTH * 4 - 1),
    "a checksum": flipped(COUNT * WIDTH * 4),
    "the layout": flipped(-FOOTER.size),
    "the number of images": flipped(16 - FOOTER.size),
    "a truncated file": lambda content: content[:-1],
    "a longer file": lambda content: content + b"\0",
    "a footer alone": lambda content: content[-FOOTER.size :],
    "an empty file": lambda content: b"",
    "another width in the description": lambda content: content.replace(b'"width": 3', b'"width": 4'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again(tmp_path, whole, damage):
    path, source = tmp_path / "whole.bin", Made()
    path.write_bytes(bytes(DAMAGES[damage](bytearray(whole))))
    open_features(path, COUNT, source)
    assert source.starts == [0, 4, 8]
    assert path.read_bytes() == whole


def test_a_file_of_another_number_of_images_is_computed_again(tmp_path, whole):
    source = Made()
    assert len(open_features(tmp_path / "whole.bin", COUNT + 1, source)) == COUNT + 1
    assert source.starts == [0, 4, 8]


def test_a_full_disk_is_refused_before_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, COUNT * WIDTH * 4 - 1))
    source = Made()
    with pytest.raises(CacheError, match=r"made-up features takes about 0\.00 GB and .* has 0\.00 GB left"):
        open_features(tmp_path / "a.bin", COUNT, source)
    assert source.starts == []


def test_a_disk_that_is_full_is_named_and_the_work_continues_once_it_is_not(tmp_path, small_disk, whole):
    disk = small_disk(2**20)
    taken = disk / "taken"
    with suppress(OSError):
        taken.write_bytes(bytes(2**20))
    with pytest.raises(CacheError, match="GB left: free some space there"):
        open_features(disk / "a.bin", COUNT, Made())
    taken.unlink()
    assert open_features(disk / "a.bin", COUNT, Made()).path.read_bytes() == whole


def test_training_draws_all_views_alike_for_equal_seeds_and_tests_see_the_first():
    rows = torch.arange(3.0).view(1, 3, 1).expand(3000, 3, 1)
    drawn, again, other = (Views().train(rows, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert drawn.shape == (3000, 1)
    counts = torch.bincount(drawn.flatten().long())
    assert counts.tolist() == pytest.approx([1000, 1000, 1000], abs=110)  # four standard deviations
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    assert not Views().evaluate(rows).any()
