"""A trial that is resumed: killed at any moment, it ends in the same result, and its costs cover all attempts."""

import ctypes
import json

import pytest
import torch

from harness.runs import files, storage
from harness.runs.bucket import Bucket
from harness.runs.run import Run
from harness.training import bench as benches
from harness.training import checkpoint, memory, scoring
from harness.training import loop as train
from harness.training import trial as trials
from harness.training.bench import Bench
from harness.training.criterion import build_criterion
from harness.training.network import build_embedder
from harness.training.origin import load_best
from harness.training.pictures import Sources
from harness.training.trial import run_trial, steps
from harness.verify import verify
from tests.harness.pictures import class_folders
from tests.harness.training.interrupted import begun, outcome, set_aside


class Killed(BaseException):
    """The process ends here."""


class Clock(list):
    """The seconds that it shows, in a list of one."""

    def ticked(self, scores):
        self[0] += 10
        return scores


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass in scoring alone, ten a time."""
    clock, scores = Clock([0.0]), Bench.scores
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Bench, "scores", lambda bench, name: clock.ticked(scores(bench, name)))
    return clock


# the moment of the crash


class LocalBucket(Bucket):
    """A bucket that is a folder of this machine; each life of the process has a working copy of its own."""

    def prepare(self):
        files.make_folder(self.folder)

    def _put(self, key, content):
        self._opened[0].create_dir(key.rpartition("/")[0])
        super()._put(key, content)


RISING = tuple(i / 100 for i in range(10, 50))


class Lives:
    """A process that is killed before it writes (in a bucket: stores) its n-th checkpoint, and is started again.

    In a bucket it is another machine that starts it.

    In its first life every epoch scores more than the one before, or as `scores` says, in the second less than any:
    what the first had chosen and lost is not chosen again. The images differ a little too, as the bits of a GPU do.
    """

    def __init__(self, monkeypatch, place, bucket, scores=RISING):
        self.life, self.writes, self.kill_before, self.weights = 0, 0, 0, {}
        self.first_scores = scores
        self.place = place
        self._batches = train._batches
        monkeypatch.setattr(Bench, "scores", lambda bench, name: self.scores(bench))
        monkeypatch.setattr(train, "_batches", self.shown)
        if bucket:
            monkeypatch.setattr(Bucket, "_send", self.counted(Bucket._send))
            monkeypatch.setattr(storage, "of", lambda place, copy=None: LocalBucket(place, self.copy))
        else:
            monkeypatch.setattr(checkpoint, "save", self.counted(checkpoint.save))
            monkeypatch.setattr(scoring, "write_json", self.counted(scoring.write_json))

    @property
    def copy(self):
        return self.place.parent / f"{self.place.name} copy {self.life}"

    def counted(self, write):
        def counted(*arguments):
            if "/checkpoints/" in "".join(map(str, arguments[:2])):
                self.writes += 1
                if self.life == 0 and self.writes == self.kill_before:
                    raise Killed
            return write(*arguments)

        return counted

    def shown(self, *arguments):
        for pixels, labels in self._batches(*arguments):
            yield pixels + 0.01 * self.life, labels

    def scores(self, bench):
        score = self.first_scores[len(self.weights)] if self.life == 0 else 1 / (100 + len(self.weights))
        self.weights[score] = checkpoint.state_digest(bench.model.state_dict())
        return {"MAP@R": score, "R@1": 0.5}, {}


@pytest.mark.parametrize("bucket", [False, True], ids=["folder", "bucket"])
@pytest.mark.parametrize("protocol", ["fair", "paper"])
def test_the_chosen_weights_match_the_curve_wherever_a_process_dies(
    protocol, bucket, folder_trial, data, tmp_path, monkeypatch
):
    trial = folder_trial(epochs=2).model_copy(update={"protocol": protocol})
    died = 0
    for kill_before in range(1, 99):
        with monkeypatch.context() as patch:
            place = tmp_path / f"run{kill_before}"
            lives = Lives(patch, place, bucket)
            lives.kill_before = kill_before
            out, messages = f"file://{place}" if bucket else place, []
            try:
                run_trial(trial, out, data)
                break
            except Killed:
                died += 1
            lives.life = 1
            list(steps(trial, Sources(out, data), messages.append))
            record = Run(out).record(trial)
            assert record is not None
            assert record.selected_epoch is not None
            assert messages == [], kill_before
            by_epoch = {epoch.epoch: epoch.validation["MAP@R"] for epoch in record.curve}
            assert list(by_epoch) == [0, 1, 2]
            assert record.provenance["tested_weights"] == lives.weights[by_epoch[record.selected_epoch]], kill_before
            if protocol == "paper":
                curve = json.loads((Run(out).checkpoints(trial) / "test_curve.json").read_text())
                shown = {int(epoch): row["weights"] for epoch, row in curve.items()}
                assert shown == {epoch: lives.weights[by_epoch[epoch]] for epoch in (1, 2)}, kill_before
                assert curve["2"]["scores"] == record.test
    assert died == WRITES[protocol], "before every write"


WRITES = {"fair": 4, "paper": 6}  # state and chosen weights of two epochs, and their test scores


@pytest.mark.parametrize("bucket", [False, True], ids=["folder", "bucket"])
def test_the_chosen_weights_match_the_curve_if_not_every_epoch_is_saved(
    bucket, folder_trial, data, tmp_path, monkeypatch, clock
):
    """Epochs take ten seconds. The first, third and last are saved, and the second and fourth score best."""
    trial, scores = folder_trial(epochs=5), (0.1, 0.2, 0.5, 0.3, 0.6, 0.4)
    monkeypatch.setattr(benches, "train", lambda *of, **how: train.train(*of, **{**how, "save_every_s": 15}))
    found = {}
    for kill_before in range(1, 99):
        with monkeypatch.context() as patch:
            place = tmp_path / f"run{kill_before}"
            lives = Lives(patch, place, bucket, scores)
            patch.setattr(Bench, "scores", lambda bench, name, lives=lives: clock.ticked(lives.scores(bench)))
            lives.kill_before = kill_before
            out, messages = f"file://{place}" if bucket else place, []
            try:
                run_trial(trial, out, data)
                break
            except Killed:
                lives.life = 1
            list(steps(trial, Sources(out, data), messages.append))
            record = Run(out).record(trial)
            assert record is not None
            assert record.selected_epoch is not None
            assert messages == [], kill_before
            by_epoch = {epoch.epoch: epoch.validation["MAP@R"] for epoch in record.curve}
            assert list(by_epoch) == [0, 1, 2, 3, 4, 5]
            assert record.provenance["tested_weights"] == lives.weights[by_epoch[record.selected_epoch]], kill_before
            found[kill_before] = (record.selected_epoch, sum(by_epoch[epoch] > 0.01 for epoch in range(1, 6)))
    # the chosen epoch, and how many epochs of the first life are left
    assert found == {1: (1, 0), 2: (1, 1), 3: (1, 1), 4: (2, 3), 5: (2, 3), 6: (4, 5)}


def test_an_interrupted_trial_that_saves_some_epochs_ends_in_the_same_bits(
    folder_trial, data, tmp_path, monkeypatch, clock
):
    monkeypatch.setattr(benches, "train", lambda *of, **how: train.train(*of, **{**how, "save_every_s": 15}))
    trial = folder_trial("proxy_anchor", epochs=6)
    whole = run_trial(trial, tmp_path / "whole", data)
    for stop, last in ((2, 1), (4, 4)):  # the second attempt begins with epoch 1 and saves epochs 2 and 4
        assert begun(trial, tmp_path / "parts", data, stop) == []
        _, meta = checkpoint.load(Run(tmp_path / "parts").checkpoints(trial) / "last.safetensors")
        assert (meta["saved"], len(meta["curve"])) == (last, last + 1)
    parts = run_trial(trial, tmp_path / "parts", data)
    assert outcome(parts) == outcome(whole)
    assert parts.provenance["tested_weights"] == whole.provenance["tested_weights"]
    assert parts.cost.steps == whole.cost.steps


def test_a_checkpoint_in_a_bucket_is_not_continued_on_other_data(folder_trial, data, tmp_path, monkeypatch):
    """Nor by the machine after the one that set it aside."""
    trial, copies = folder_trial(), iter("abc")
    place = f"file://{tmp_path}/run"
    monkeypatch.setattr(storage, "of", lambda place, copy=None: LocalBucket(place, tmp_path / f"copy {life}"))
    life = next(copies)
    begun(trial, place, data, 2)
    class_folders(data, classes=4, images=5, first=12)
    life = next(copies)
    (sentence,) = begun(trial, place, data, 1)
    assert "after epoch 2 cannot be continued: the split of the data changed from " in sentence
    life = next(copies)
    running = steps(trial, Sources(place, data), pytest.fail)
    assert next(running).epoch == 1
    assert len(list((tmp_path / "run" / "set_aside").rglob("last.safetensors"))) == 1


def test_lost_chosen_weights_are_saved_again_from_the_state(folder_trial, data, tmp_path):
    trial = folder_trial()
    begun(trial, tmp_path / "run", data)
    path = Run(tmp_path / "run").checkpoints(trial) / "best.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert begun(trial, tmp_path / "run", data) == []
    assert outcome(run_trial(trial, tmp_path / "run", data)) == outcome(run_trial(trial, tmp_path / "alone", data))
    assert set_aside(tmp_path / "run") == []


LEVELS = (
    "contrastive+xbm[size=20,warmup_steps=3]",
    "multi_similarity+xbm[size=20,warmup_steps=3]+input",
    "contrastive+i_mix",
    "contrastive+mochi[hardest=4]",
    "norm_softmax+proxy_synthesis",
    "proxy_anchor+memvir[num_steps=2,gap=1,warmup_steps=3]",
    "recall_at_k+simix",
)


@pytest.mark.parametrize("arm", LEVELS)
def test_a_level_continues_with_the_bits_that_it_had(arm, folder_trial, data, tmp_path):
    """Memory, draws and counts are those of a training that was not interrupted."""
    trial = folder_trial(arm, epochs=4)
    whole = run_trial(trial, tmp_path / "whole", data)
    assert begun(trial, tmp_path / "parts", data, 2) == []
    parts = run_trial(trial, tmp_path / "parts", data)
    assert outcome(parts) == outcome(whole)
    assert parts.counted == whole.counted != {}
    assert (parts.notes, parts.effective) == (whole.notes, whole.effective)
    kept = [Run(place).checkpoints(trial) / "last.safetensors" for place in (tmp_path / "whole", tmp_path / "parts")]
    (first, _), (second, _) = map(checkpoint.load, kept)
    assert checkpoint.state_digest(first["criterion"]) == checkpoint.state_digest(second["criterion"])


@pytest.mark.parametrize("broken", ["last", "best", "other epoch"])
def test_a_checkpoint_that_cannot_be_continued_is_set_aside(broken, folder_trial, data, tmp_path, monkeypatch):
    trial = folder_trial()
    falling = iter((0.9, 0.8, 0.7, 0.6))
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "scores", lambda bench, name: ({"MAP@R": next(falling), "R@1": 0.5}, {}))
        begun(trial, tmp_path / "run", data, 2)
    path = Run(tmp_path / "run").checkpoints(trial) / f"{'last' if broken == 'last' else 'best'}.safetensors"
    if broken == "other epoch":
        checkpoint.save(path, checkpoint.load(path)[0], {"epoch": 2})
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    messages = []
    list(steps(trial, Sources(tmp_path / "run", data), messages.append))
    (sentence,) = messages
    assert "; the trial starts again (kept as " in sentence
    assert ("is of epoch 2, not 1" in sentence) == (broken == "other epoch")
    assert outcome(Run(tmp_path / "run").record(trial)) == outcome(run_trial(trial, tmp_path / "alone", data))
    assert len(set_aside(tmp_path / "run")) == 1


# what it took


def test_the_time_of_earlier_attempts_counts(folder_trial, data, tmp_path, clock):
    trial = folder_trial()
    running = steps(trial, Sources(tmp_path, data))
    assert next(running).wall_s == 20  # before the first step, and after epoch 1
    running.close()
    clock[0] += 1000  # lost: no checkpoint tells of it
    record = run_trial(trial, tmp_path, data)
    assert (record.cost.wall_s, record.cost.attempt_s) == (40, 20)
    assert [epoch.validation_s for epoch in record.curve] == [10, 10, 10, 10]


def test_the_time_of_an_attempt_out_of_memory_counts_too(folder_trial, data, tmp_path, clock, monkeypatch):
    shown, failed = train._batches, []

    def full(trial, epoch, *arguments):
        if epoch == 2 and not failed:
            failed.append(epoch)
            clock[0] += 500
            raise torch.OutOfMemoryError("of memory")
        return shown(trial, epoch, *arguments)

    monkeypatch.setattr(train, "_batches", full)
    cost = run_trial(folder_trial(), tmp_path, data).cost
    assert (cost.wall_s, failed) == (540, [2])


def test_steps_images_and_seconds_of_all_attempts_are_summed(folder_trial, data, tmp_path):
    whole = run_trial(folder_trial(), tmp_path / "whole", data)
    begun(folder_trial(), tmp_path / "parts", data, 2)
    parts = run_trial(folder_trial(), tmp_path / "parts", data)
    assert (parts.cost.steps, parts.cost.images_seen) == (whole.cost.steps, whole.cost.images_seen)
    assert parts.cost.train_s == sum(epoch.train_s for epoch in parts.curve)
    assert parts.cost.images_per_s == parts.cost.images_seen / parts.cost.train_s
    assert parts.cost.attempt_s is not None
    assert parts.cost.wall_s > parts.cost.attempt_s > 0


def test_the_peak_of_memory_belongs_to_the_trial_not_to_the_process(folder_trial, data, tmp_path):
    first = run_trial(folder_trial(), tmp_path, data).cost.peak_gb
    if first is None:
        pytest.skip("this system does not let a process begin its peak anew")
    held = bytearray(300_000_000)
    held[::4096] = b"1" * len(held[::4096])
    large = run_trial(folder_trial(), tmp_path / "large", data).cost.peak_gb
    del held
    again = run_trial(folder_trial(), tmp_path / "again", data).cost.peak_gb
    assert large is not None
    assert again is not None
    assert large > first + 0.2
    assert again < large - 0.2


def test_a_trial_continued_on_another_device_has_a_note(folder_trial, data, tmp_path, monkeypatch):
    trial = folder_trial()
    for epochs, device in ((1, "GPU A"), (2, "GPU B"), (1, "GPU A")):
        monkeypatch.setattr(trials, "device_name", lambda _, device=device: device)
        begun(trial, tmp_path / "run", data, epochs)
    record = run_trial(trial, tmp_path / "run", data)
    messages = "trained on GPU A, then on GPU B: its times are those of several devices"
    assert [note for note in record.notes if "GPU" in note] == [messages]
    alone = run_trial(trial, tmp_path / "alone", data)
    assert not any("GPU" in note for note in alone.notes)


def test_memory_freed_earlier_is_not_part_of_the_peak():
    """An allocator keeps freed memory, and a trial after a large one would seem as large: 2.64 and then 1.17 GB."""
    device = torch.device("cpu")
    if not memory.begin(device) or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this system does not let a process begin its peak anew")
    first = memory.peak_gb(device)
    blocks = [torch.ones(10_000) for _ in range(8_000)]  # 40 kB each, which glibc takes from its heap
    last = torch.ones(10_000)  # above them, so that the heap cannot shrink from its end
    full = memory.peak_gb(device)
    del blocks
    memory.begin(device)
    after = memory.peak_gb(device)
    assert first is not None
    assert full is not None
    assert after is not None
    assert full > first + 0.25
    assert after < first + 0.1
    del last


def test_an_unknown_peak_is_none(folder_trial, data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "REFERENCES", tmp_path / "none" / "clear_refs")
    assert run_trial(folder_trial(), tmp_path, data).cost.peak_gb is None


def test_the_peak_of_earlier_attempts_counts():
    first = train.Progress()
    first.note_peak(3.0)
    first.note_peak(2.0)
    again = train.Progress().resumed(first.content())
    again.note_peak(1.0)
    assert again.peak_gb == 3.0
    again.note_peak(None)
    again.note_peak(5.0)
    assert again.peak_gb is None, "one attempt is not known"


# what the chosen epoch was


def test_the_analysis_uses_the_proxies_of_the_chosen_epoch(folder_trial, data, tmp_path, monkeypatch):
    falling = iter((0.5, 0.9, 0.8, 0.7))
    monkeypatch.setattr(Bench, "scores", lambda bench, name: ({"MAP@R": next(falling), "R@1": 0.5}, {}))
    seen, analyse = [], trials.analyse

    def watched(*arguments):
        seen.append(arguments[-1].state_dict()["proxies"].clone())
        return analyse(*arguments)

    monkeypatch.setattr(trials, "analyse", watched)
    trial = folder_trial("proxy_anchor+embedding", lr=1e-2).model_copy(update={"analysis": True})
    proxies = {}
    for progress in steps(trial, Sources(tmp_path, data)):
        sections, _ = checkpoint.load(Run(tmp_path).checkpoints(trial) / "last.safetensors")
        (proxies[progress.epoch],) = (t for name, t in sections["criterion"].items() if name.endswith("proxies"))
    (used,) = seen
    record = Run(tmp_path).record(trial)
    assert record is not None
    assert record.selected_epoch == 1
    assert torch.equal(used, proxies[1])
    assert not torch.equal(used, proxies[3])


def test_weights_of_an_older_version_are_read_without_the_state_of_the_loss(folder_trial, data, tmp_path):
    trial = folder_trial()
    record = run_trial(trial, tmp_path, data)
    folder = Run(tmp_path).checkpoints(trial)
    sections, meta = checkpoint.load(folder / "best.safetensors")
    checkpoint.save(folder / "best.safetensors", {"model": sections["model"]}, meta)
    model = build_embedder(trial)
    assert record.selected_epoch is not None
    assert load_best(model, folder, record.selected_epoch) == record.selected_epoch
    assert checkpoint.state_digest(model.state_dict()) == record.provenance["tested_weights"]
    with pytest.raises(checkpoint.CheckpointError, match="does not contain the state of the loss"):
        load_best(model, folder, record.selected_epoch, build_criterion(trial, 4))
    (verdict,) = verify(Run(tmp_path), data=data)
    assert verdict.state == "matches", verdict


# the starting point


def test_a_curve_starts_before_the_first_step(folder_trial, data, tmp_path):
    trial, untrained = folder_trial(epochs=2), folder_trial("untrained")
    record, floor = (run_trial(some, tmp_path, data) for some in (trial, untrained))
    start, *trained = record.curve
    assert (start.epoch, start.loss, start.lr, start.train_s) == (0, None, 0.0, 0.0)
    assert start.validation == floor.validation
    assert start.validation_s > 0
    assert start.spread.keys() == trained[0].spread.keys() != set()
    assert [epoch.epoch for epoch in trained] == [1, 2]


def test_the_starting_point_is_scored_once(folder_trial, data, tmp_path, monkeypatch):
    count, scores = [], Bench.scores
    monkeypatch.setattr(Bench, "scores", lambda bench, name: (count.append(name), scores(bench, name))[1])
    begun(folder_trial(), tmp_path, data, 1)
    assert len(count) == 2
    run_trial(folder_trial(), tmp_path, data)
    assert len(count) == 4
