"""A trial that is continued: from the data, weights and code it began with, whatever moment it was killed at."""

import ctypes
import json

import pytest
import torch

from harness.audit import audit
from harness.config import Backbone, Choice
from harness.grid import Grid
from harness.launch import comparable, run_grid
from harness.runs import storage
from harness.runs.record import Run, RunError
from harness.training import checkpoint, memory, models
from harness.training import loop as train
from harness.training import trial as trials
from harness.training.trial import Sources, run_trial, steps
from harness.verify import verify
from tests.harness.pictures import class_folders


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="contrastive", **changes):
        trial = make_trial(arm, **{"epochs": 3, "examples_per_class": 2, "batch_size": 8, **changes})
        return trial.model_copy(update={"dataset": Choice(name="folder"), "keep": "weights"})

    return tiny


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of images that a test may change: each trial looks at it anew, as another process would."""
    monkeypatch.setattr(trials, "_dataset", trials._dataset.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return class_folders(tmp_path / "data", classes=12, images=5)


def outcome(record):
    return record.test, record.selected_epoch, [(e.epoch, e.loss, e.validation) for e in record.curve]


def set_aside(place):
    return sorted(path.name for path in (place / "set_aside").glob("*"))


def begun(trial, place, data, epochs=1, **changes):
    """A trial that was stopped after so many epochs; what it said."""
    said = []
    running = steps(trial, Sources(place, data, **changes), said.append)
    for _ in range(epochs):
        next(running)
    running.close()
    return said


# what lies behind the paths


def test_a_trial_does_not_continue_on_other_classes(tiny, data, tmp_path):
    trial, place = tiny(), tmp_path / "run"
    said, sources = [], Sources(place, data)
    begun(trial, place, data, 2)
    before = trials.origin_of(trial, sources)["split"]
    class_folders(data, classes=4, images=5, first=12)
    epochs = [progress.epoch for progress in steps(trial, sources, said.append)]
    assert epochs == [1, 2, 3], "from the beginning"
    (sentence,) = said
    now = trials.origin_of(trial, sources)["split"]
    assert sentence.startswith(
        f"the checkpoint of {trial.id} after epoch 2 cannot be continued: the division of the data changed from "
        f"{before[:12]} to {now[:12]}; the images changed from "
    )
    assert "; the trial starts again (kept as " in sentence
    (kept,) = set_aside(place)
    assert checkpoint.load(place / "set_aside" / kept / "last.safetensors")[1]["curve"][-1]["epoch"] == 2
    alone = run_trial(trial, tmp_path / "alone", data)
    assert outcome(Run(place).record(trial)) == outcome(alone)


@pytest.mark.parametrize("path", ["cache", "classical"])
def test_a_trial_does_not_continue_on_other_pixels_under_the_same_names(path, tiny, data, tmp_path):
    trial = tiny()
    trial = trial.model_copy(update={"images": trial.images.model_copy(update={"path": path})})
    begun(trial, tmp_path / "run", data)
    pictures = sorted(data.rglob("*.png"))
    pictures[0].write_bytes(pictures[-1].read_bytes())
    (sentence,) = begun(trial, tmp_path / "run", data)
    assert "cannot be continued: the images changed from " in sentence
    assert "division" not in sentence


@pytest.mark.parametrize("path", ["cache", "classical"])
def test_a_copy_of_the_same_data_is_no_other(path, tiny, data, tmp_path):
    import shutil

    trial = tiny()
    trial = trial.model_copy(update={"images": trial.images.model_copy(update={"path": path})})
    begun(trial, tmp_path / "run", data, 2)
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    running = steps(trial, Sources(tmp_path / "run", copy))
    assert next(running).epoch == 2
    assert set_aside(tmp_path / "run") == []


def test_images_of_equal_size_and_time_are_not_taken_for_those_of_another_folder(tiny, tmp_path):
    """As two archives give that were packed with one date: the decoded ones lie in one cache."""
    import os

    from harness.data import datasets
    from harness.data.images import open_images

    found = []
    for name, shade in (("a", 0), ("b", 100)):
        folder = class_folders(tmp_path / name, classes=4, images=2, suffix=".bmp", shade=shade)
        for path in folder.rglob("*.bmp"):
            os.utime(path, (1, 1))
        found.append(open_images(datasets.load("folder", folder), 8, tmp_path / "cache"))
    assert found[0].path != found[1].path
    assert found[0].fingerprint != found[1].fingerprint
    assert (found[0].array != found[1].array).any()


def test_a_trial_does_not_continue_from_other_weights(tiny, data, tmp_path):
    from safetensors.torch import save_file

    network = {n.removeprefix("backbone."): t for n, t in _initial(tiny()).items() if n.startswith("backbone.")}
    path = tmp_path / "weights.safetensors"
    trial = tiny().model_copy(update={"backbone": Backbone(name="test_resnet", pretrained=str(path))})
    save_file(network, path)
    first = checkpoint.digest(path)
    begun(trial, tmp_path / "run", data)
    save_file({name: tensor * 2 if "conv1.0" in name else tensor for name, tensor in network.items()}, path)
    (sentence,) = begun(trial, tmp_path / "run", data)
    second = checkpoint.digest(path)
    assert f": the initial weights changed from {first[:12]} to {second[:12]};" in sentence
    assert run_trial(trial, tmp_path / "run", data).provenance["initial_weights"] == second


@pytest.mark.parametrize("pretrained", [True, "w.safetensors"])
def test_weights_that_are_gone_are_a_sentence_and_hide_no_records(pretrained, tiny, data, tmp_path, monkeypatch):
    def gone(*_):
        raise models.Unavailable("the published weights of test_resnet.r160_in1k are not on this machine")

    monkeypatch.setattr(models, "fetch", gone)
    trial = tiny("untrained").model_copy(update={"backbone": Backbone(name="test_resnet", pretrained=pretrained)})
    said = (
        "the published weights of" if pretrained is True else "the weights w.safetensors cannot be read: No such file"
    )
    with pytest.raises(models.ModelError, match=said) as error:
        trials.weights_digest(trial)
    assert trials.kind_of(error.value) == "error", "another machine may have them"
    record = run_trial(tiny("untrained"), tmp_path, data).model_copy(update={"trial": trial})
    assert trials.other_origins([record], [trial], Sources(tmp_path, data)) == []


def _initial(trial):
    return {name: tensor.contiguous() for name, tensor in trials.embedder(trial).state_dict().items()}


def test_a_trial_does_not_continue_under_another_version(tiny, data, tmp_path, monkeypatch):
    trial = tiny()
    begun(trial, tmp_path / "run", data)
    versions = trials.training_versions()
    newer = {**versions, "timm": "99.0", "the training code": "f" * 64}
    monkeypatch.setattr("harness.training.trial.training_versions", lambda: newer)
    (sentence,) = begun(trial, tmp_path / "run", data)
    old = versions["the training code"][:12]
    assert f": timm changed from {versions['timm']} to 99.0; the training code changed from {old} to " in sentence


def test_a_checkpoint_of_an_older_version_is_set_aside(tiny, data, tmp_path):
    trial = tiny()
    begun(trial, tmp_path / "run", data)
    path = Run(tmp_path / "run").checkpoints(trial) / "last.safetensors"
    sections, meta = checkpoint.load(path)
    for new in ("origin", "earlier_s", "peak_gb"):
        del meta[new]
    checkpoint.save(path, sections, {**meta, "curve": meta["curve"][1:]})
    (sentence,) = begun(trial, tmp_path / "run", data)
    assert (
        "after epoch 1 cannot be continued: it does not say which data, weights and code it comes from;" in sentence
    )


def test_what_trains_is_there_and_reports_are_no_part_of_it():
    from harness.runs import provenance

    assert [place for place in provenance.TRAINS if not (provenance.ROOT / place).exists()] == []
    assert not any("report" in place or "launch" in place for place in provenance.TRAINS)
    assert len(provenance.training_versions()["the training code"]) == 64


# the moment of the crash


class LocalBucket(storage.Bucket):
    """A bucket that is a folder of this machine; each life of the process has a working copy of its own."""

    def prepare(self):
        storage.make(self.folder)

    def _put(self, key, content):
        self._opened[0].create_dir(key.rpartition("/")[0])
        super()._put(key, content)


class Lives:
    """A process that is killed before it writes (in a bucket: stores) its n-th checkpoint, and is started again.

    In a bucket it is another machine that starts it.

    In its first life every epoch scores more than the one before, in the second less than any: what the first had
    chosen and lost is not chosen again. The images differ a little too, as the bits of a GPU do.
    """

    def __init__(self, monkeypatch, place, bucket):
        self.life, self.writes, self.kill_before, self.weights = 0, 0, 0, {}
        self.place = place
        self._shown = train._shown
        monkeypatch.setattr(trials.Bench, "scores", lambda bench, name: self.scores(bench))
        monkeypatch.setattr(train, "_shown", self.shown)
        if bucket:
            monkeypatch.setattr(storage.Bucket, "_send", self.counted(storage.Bucket._send))
            monkeypatch.setattr(storage, "of", lambda place, copy=None: LocalBucket(place, self.copy))
        else:
            monkeypatch.setattr(checkpoint, "save", self.counted(checkpoint.save))
            monkeypatch.setattr(trials, "write_json", self.counted(trials.write_json))

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
        for pixels, labels in self._shown(*arguments):
            yield pixels + 0.01 * self.life, labels

    def scores(self, bench):
        score = (10 + len(self.weights)) / 100 if self.life == 0 else 1 / (100 + len(self.weights))
        self.weights[score] = checkpoint.state_digest(bench.model.state_dict())
        return {"MAP@R": score, "R@1": 0.5}, {}


@pytest.mark.parametrize("bucket", [False, True], ids=["folder", "bucket"])
@pytest.mark.parametrize("protocol", ["fair", "paper"])
def test_wherever_a_process_dies_the_chosen_weights_are_those_of_the_curve(
    protocol, bucket, tiny, data, tmp_path, monkeypatch
):
    trial = tiny(epochs=2).model_copy(update={"protocol": protocol})
    died = 0
    for kill_before in range(1, 99):
        with monkeypatch.context() as patch:
            place = tmp_path / f"run{kill_before}"
            lives = Lives(patch, place, bucket)
            lives.kill_before = kill_before
            out, said = f"file://{place}" if bucket else place, []
            try:
                run_trial(trial, out, data)
                break
            except Killed:
                died += 1
            lives.life = 1
            list(steps(trial, Sources(out, data), said.append))
            record = Run(out).record(trial)
            assert said == [], kill_before
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


def test_a_checkpoint_in_a_bucket_is_not_continued_on_other_data(tiny, data, tmp_path, monkeypatch):
    """Nor by the machine after the one that set it aside."""
    trial, copies = tiny(), iter("abc")
    place = f"file://{tmp_path}/run"
    monkeypatch.setattr(storage, "of", lambda place, copy=None: LocalBucket(place, tmp_path / f"copy {life}"))
    life = next(copies)
    begun(trial, place, data, 2)
    class_folders(data, classes=4, images=5, first=12)
    life = next(copies)
    (sentence,) = begun(trial, place, data, 1)
    assert "after epoch 2 cannot be continued: the division of the data changed from " in sentence
    life = next(copies)
    running = steps(trial, Sources(place, data), pytest.fail)
    assert next(running).epoch == 1
    assert len(list((tmp_path / "run" / "set_aside").rglob("last.safetensors"))) == 1


def test_chosen_weights_that_are_lost_are_made_again_from_the_state(tiny, data, tmp_path):
    trial = tiny()
    begun(trial, tmp_path / "run", data)
    path = Run(tmp_path / "run").checkpoints(trial) / "best.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert begun(trial, tmp_path / "run", data) == []
    assert outcome(run_trial(trial, tmp_path / "run", data)) == outcome(run_trial(trial, tmp_path / "alone", data))
    assert set_aside(tmp_path / "run") == []


@pytest.mark.parametrize("broken", ["last", "best", "other epoch"])
def test_a_checkpoint_that_cannot_be_continued_is_set_aside(broken, tiny, data, tmp_path, monkeypatch):
    trial = tiny()
    falling = iter((0.9, 0.8, 0.7, 0.6))
    with monkeypatch.context() as patch:
        patch.setattr(trials.Bench, "scores", lambda bench, name: ({"MAP@R": next(falling), "R@1": 0.5}, {}))
        begun(trial, tmp_path / "run", data, 2)
    path = Run(tmp_path / "run").checkpoints(trial) / f"{'last' if broken == 'last' else 'best'}.safetensors"
    if broken == "other epoch":
        checkpoint.save(path, checkpoint.load(path)[0], {"epoch": 2})
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = []
    list(steps(trial, Sources(tmp_path / "run", data), said.append))
    (sentence,) = said
    assert "; the trial starts again (kept as " in sentence
    assert ("is of epoch 2, not 1" in sentence) == (broken == "other epoch")
    assert outcome(Run(tmp_path / "run").record(trial)) == outcome(run_trial(trial, tmp_path / "alone", data))
    assert len(set_aside(tmp_path / "run")) == 1


# what it took


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass in scoring alone, ten a time; the list holds what the clock shows."""
    clock, scores = [0.0], trials.Bench.scores

    def slow(bench, name):
        clock[0] += 10
        return scores(bench, name)

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(trials.Bench, "scores", slow)
    return clock


def test_the_time_of_earlier_attempts_counts(tiny, data, tmp_path, clock):
    trial = tiny()
    running = steps(trial, Sources(tmp_path, data))
    assert next(running).wall_s == 20  # before the first step, and after epoch 1
    running.close()
    clock[0] += 1000  # lost: no checkpoint tells of it
    run_trial(trial, tmp_path, data)
    record = Run(tmp_path).record(trial)
    assert (record.cost.wall_s, record.cost.attempt_s) == (40, 20)
    assert [epoch.validation_s for epoch in record.curve] == [10, 10, 10, 10]


def test_the_time_of_an_attempt_that_ran_out_of_memory_counts_too(tiny, data, tmp_path, clock, monkeypatch):
    shown, failed = train._shown, []

    def full(trial, epoch, *arguments):
        if epoch == 2 and not failed:
            failed.append(epoch)
            clock[0] += 500
            raise torch.OutOfMemoryError("of memory")
        return shown(trial, epoch, *arguments)

    monkeypatch.setattr(train, "_shown", full)
    cost = run_trial(tiny(), tmp_path, data).cost
    assert (cost.wall_s, failed) == (540, [2])


def test_steps_images_and_seconds_of_training_are_those_of_all_attempts(tiny, data, tmp_path):
    whole = run_trial(tiny(), tmp_path / "whole", data)
    begun(tiny(), tmp_path / "parts", data, 2)
    parts = run_trial(tiny(), tmp_path / "parts", data)
    assert (parts.cost.steps, parts.cost.images_seen) == (whole.cost.steps, whole.cost.images_seen)
    assert parts.cost.train_s == sum(epoch.train_s for epoch in parts.curve)
    assert parts.cost.images_per_s == parts.cost.images_seen / parts.cost.train_s
    assert parts.cost.wall_s > parts.cost.attempt_s > 0


def test_the_peak_of_memory_is_that_of_the_trial_not_of_the_process(tiny, data, tmp_path):
    first = run_trial(tiny(), tmp_path, data).cost.peak_gb
    if first is None:
        pytest.skip("this system does not let a process begin its peak anew")
    held = bytearray(300_000_000)
    held[::4096] = b"1" * len(held[::4096])
    large = run_trial(tiny(), tmp_path / "large", data).cost.peak_gb
    del held
    assert large > first + 0.2
    assert run_trial(tiny(), tmp_path / "again", data).cost.peak_gb < large - 0.2


def test_a_trial_that_goes_on_elsewhere_says_so(tiny, data, tmp_path, monkeypatch):
    trial = tiny()
    for epochs, device in ((1, "GPU A"), (2, "GPU B"), (1, "GPU A")):
        monkeypatch.setattr(trials, "device_name", lambda _, device=device: device)
        begun(trial, tmp_path / "run", data, epochs)
    record = run_trial(trial, tmp_path / "run", data)
    said = "trained on GPU A, then on GPU B: its times are those of several devices"
    assert [note for note in record.notes if "GPU" in note] == [said]
    alone = run_trial(trial, tmp_path / "alone", data)
    assert not any("GPU" in note for note in alone.notes)


def test_what_earlier_work_has_freed_is_no_part_of_the_peak():
    """An allocator keeps freed memory, and a trial after a large one would seem as large: 2.64 and then 1.17 GB."""
    device = torch.device("cpu")
    if not memory.begin(device) or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this system does not let a process begin its peak anew")
    first = memory.peak_gb(device)
    blocks = [torch.ones(10_000) for _ in range(8_000)]  # 40 kB each, which glibc takes from its heap
    last = torch.ones(10_000)  # above them, so that the heap cannot shrink from its end
    assert memory.peak_gb(device) > first + 0.25
    del blocks
    memory.begin(device)
    assert memory.peak_gb(device) < first + 0.1
    del last


def test_a_peak_that_is_not_known_is_not_made_up(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "REFERENCES", tmp_path / "none" / "clear_refs")
    assert run_trial(tiny(), tmp_path, data).cost.peak_gb is None


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


def test_the_analysis_has_the_proxies_of_the_chosen_epoch(tiny, data, tmp_path, monkeypatch):
    falling = iter((0.5, 0.9, 0.8, 0.7))
    monkeypatch.setattr(trials.Bench, "scores", lambda bench, name: ({"MAP@R": next(falling), "R@1": 0.5}, {}))
    seen, analyse = [], trials.analyse

    def watched(*arguments):
        seen.append(arguments[-1].state_dict()["proxies"].clone())
        return analyse(*arguments)

    monkeypatch.setattr(trials, "analyse", watched)
    trial = tiny("proxy_anchor+embedding", lr=1e-2).model_copy(update={"analysis": True})
    proxies = {}
    for progress in steps(trial, Sources(tmp_path, data)):
        sections, _ = checkpoint.load(Run(tmp_path).checkpoints(trial) / "last.safetensors")
        (proxies[progress.epoch],) = (t for name, t in sections["criterion"].items() if name.endswith("proxies"))
    (used,) = seen
    assert Run(tmp_path).record(trial).selected_epoch == 1
    assert torch.equal(used, proxies[1])
    assert not torch.equal(used, proxies[3])


def test_weights_of_an_older_version_are_read_without_what_the_loss_had_learnt(tiny, data, tmp_path):
    trial = tiny()
    record = run_trial(trial, tmp_path, data)
    folder = Run(tmp_path).checkpoints(trial)
    sections, meta = checkpoint.load(folder / "best.safetensors")
    checkpoint.save(folder / "best.safetensors", {"model": sections["model"]}, meta)
    model = trials.embedder(trial)
    assert trials.load_best(model, folder, record.selected_epoch) == record.selected_epoch
    assert checkpoint.state_digest(model.state_dict()) == record.provenance["tested_weights"]
    with pytest.raises(checkpoint.CheckpointError, match="does not hold what the loss had learnt"):
        trials.load_best(model, folder, record.selected_epoch, trials.objective(trial, 4))
    (verdict,) = verify(Run(tmp_path), data=data)
    assert verdict.state == "matches", verdict


# the starting point


def test_a_curve_begins_with_the_network_before_its_first_step(tiny, data, tmp_path):
    trial, untrained = tiny(epochs=2), tiny("untrained")
    record, floor = (run_trial(some, tmp_path, data) for some in (trial, untrained))
    start, *trained = record.curve
    assert (start.epoch, start.loss, start.lr, start.train_s) == (0, None, 0.0, 0.0)
    assert start.validation == floor.validation
    assert start.validation_s > 0
    assert start.spread.keys() == trained[0].spread.keys() != set()
    assert [epoch.epoch for epoch in trained] == [1, 2]


def test_the_starting_point_is_scored_once(tiny, data, tmp_path, monkeypatch):
    count, scores = [], trials.Bench.scores
    monkeypatch.setattr(trials.Bench, "scores", lambda bench, name: (count.append(name), scores(bench, name))[1])
    begun(tiny(), tmp_path, data, 1)
    assert len(count) == 2
    run_trial(tiny(), tmp_path, data)
    assert len(count) == 4


# what is done


@pytest.fixture
def grid(tmp_path):
    return Grid(
        name="g",
        datasets=["folder"],
        backbones=["test_resnet"],
        losses=["contrastive"],
        levels=["baseline"],
        floors=[],
        seeds=(0,),
        model={"dim": 16},
        images={"side_px": 32},
        training={"epochs": 1, "batch_size": 8, "examples_per_class": 2, "lr": 1e-3, "schedule": "constant"},
    )


@pytest.mark.parametrize(("where", "protocol"), [("", "fair"), ("search", "tuned")])
def test_what_is_done_from_other_data_is_not_mixed_with(where, protocol, grid, data, tmp_path):
    place = tmp_path / "run"
    (trial,) = grid.trials()
    record = run_trial(trial, place / where, data)
    sources, grid = Sources(place, data), grid.model_copy(update={"protocol": protocol})
    assert comparable(Run(place), grid, grid.trials(), sources) == ({trial.id} if not where else set())
    class_folders(data, classes=4, images=5, first=12)
    now = trials.origin_of(trial, sources)
    with pytest.raises(RunError) as refused:
        comparable(Run(place), grid, grid.trials(), sources)
    split, images = record.data.split_fingerprint, record.data.content_fingerprint
    assert str(refused.value) == (
        f"{place / where} holds results from other data:\n"
        f"  folder: the division of the data changed from {split[:12]} to {now['split'][:12]} (1 record)\n"
        f"  folder: the images changed from {images[:12]} to {now['images'][:12]} (1 record)\n"
        "Results from different data do not share a table: name another folder with --out (OUT=… of make), or bring "
        "the old data back."
    )


def test_what_is_done_from_other_pixels_or_weights_is_not_mixed_with(grid, data, tmp_path):
    (trial,) = grid.trials()
    sources = Sources(tmp_path / "run", data)
    record = run_trial(trial, sources.out, data)
    assert trials.other_origins([record], [trial], sources) == []
    old = record.data.model_copy(update={"content_fingerprint": None, "source_stamp": None})
    picture = min(data.rglob("*.png"))
    picture.touch()
    assert trials.other_origins([record], [trial], sources) == [], "the same pixels, at another time"
    picture.write_bytes(sorted(data.rglob("*.png"))[-1].read_bytes())
    (sentence,) = trials.other_origins([record], [trial], sources)
    assert sentence.startswith("folder: the images changed from ")
    assert trials.other_origins([record.model_copy(update={"data": old})], [trial], sources) == [], "it does not tell"


def test_a_run_refuses_to_add_to_results_from_other_data(grid, data, tmp_path):
    """Although all its trials are done."""
    run_trial(grid.trials()[0], tmp_path / "run", data)
    class_folders(data, classes=4, images=5, first=12)
    with pytest.raises(RunError, match="holds results from other data:\n  folder: the division of the data changed"):
        run_grid(grid, tmp_path / "run", data)


def test_the_audit_finds_records_from_other_data(grid, data, tmp_path):
    first, second = (trial for seed in (0, 1) for trial in grid.model_copy(update={"seeds": (seed,)}).trials())
    run_trial(first, tmp_path / "run", data)
    class_folders(data, classes=4, images=5, first=12)
    run_trial(second, tmp_path / "run", data)
    found = [finding.sentence for finding in audit(Run(tmp_path / "run")) if finding.severity == "E"]
    assert any(sentence.startswith("FAIR-01 folder: 2 different copies of the data (") for sentence in found)


def test_verify_does_not_run_weights_on_other_pixels(tiny, data, tmp_path):
    run_trial(tiny(), tmp_path / "run", data)
    picture = min(data.rglob("*.png"))
    picture.write_bytes(sorted(data.rglob("*.png"))[-1].read_bytes())
    (verdict,) = verify(Run(tmp_path / "run"), data=data)
    assert verdict.missing == [
        "the weights have the recorded digest and were not run: these are not the data of the row"
    ]
