"""Runs in folders that fill up and go away, and in a bucket of a real S3 server."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from harness.audit import audit
from harness.cli import main
from harness.config import Choice
from harness.data.cache import default_folder
from harness.fairness.ledger import Ledger
from harness.grid import Grid
from harness.runs import storage
from harness.runs.record import Run, RunError
from harness.runs.storage import StorageError
from harness.training.checkpoint import CheckpointError
from harness.training.trial import Sources, run_trial, steps

CACHE = default_folder()  # of datasets; tests of buckets have a cache folder of their own
KEY = {"cell": "glyphs/test_resnet/contrastive/s0", "checkpoint": "aa", "split": "s1", "evaluator": "e1"}


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="contrastive", **changes):
        trial = make_trial(arm, **changes)
        return trial.model_copy(update={"dataset": Choice(name="glyphs", options={"classes": 16})})

    return tiny


def outcome(record):
    """What must be equal bit for bit."""
    return record.test, record.selected_epoch, [(e.loss, e.validation) for e in record.curve]


def after(seconds, act):
    """Do something while the test goes on."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


# folders


def test_a_full_disk_is_waited_for_while_a_checkpoint_and_a_record_are_written(tiny, tmp_path, small_disk, capfd):
    trial, disk = tiny(epochs=3), small_disk(16 * 2**20)
    whole, fill = run_trial(trial, tmp_path / "whole"), disk / "fill"
    room = os.statvfs(disk)
    running = steps(trial, Sources(disk / "run"))
    next(running)
    free = os.statvfs(disk)
    assert free.f_bavail < room.f_bavail
    fill.write_bytes(b"0" * (free.f_bavail * free.f_frsize))
    after(1.5, fill.unlink)
    began = time.monotonic()
    next(running)
    assert time.monotonic() - began > 1.0
    next(running)
    fill.write_bytes(b"0" * (os.statvfs(disk).f_bavail * free.f_frsize))
    after(1.5, fill.unlink)
    assert list(running) == []
    assert outcome(Run(disk / "run").record(trial)) == outcome(whole)
    assert capfd.readouterr().err.count("waiting for room on") >= 2
    assert list((disk / "run").rglob("*.part")) == []


def test_a_disk_that_stays_full_keeps_the_previous_checkpoint(tiny, small_disk, monkeypatch):
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0.3")
    trial, disk = tiny(epochs=3), small_disk(16 * 2**20)
    running = steps(trial, Sources(disk / "run"))
    next(running)
    fill = disk / "fill"
    fill.write_bytes(b"0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    with pytest.raises(CheckpointError, match=r"waited 0 s for room on .*Nothing that was computed is lost"):
        next(running)
    fill.unlink()
    assert [progress.epoch for progress in steps(trial, Sources(disk / "run"))] == [1, 2, 3]


def test_a_run_folder_that_goes_away_is_waited_for_and_never_made_anew(tiny, tmp_path, capfd):
    trial, folder, elsewhere = tiny(epochs=3), tmp_path / "run", tmp_path / "away"
    whole = run_trial(trial, tmp_path / "whole")
    running = steps(trial, Sources(folder))
    next(running)
    folder.rename(elsewhere)
    seen = []
    after(1.5, lambda: (seen.append(folder.exists()), elsewhere.rename(folder)))
    assert len(list(running)) == 2
    assert seen == [False]
    assert outcome(Run(folder).record(trial)) == outcome(whole)
    assert f"waiting for {folder} to come back" in capfd.readouterr().err


def test_a_run_folder_that_is_away_is_no_empty_one(tmp_path, make_trial, make_record, monkeypatch):
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0.2")
    run = Run(tmp_path / "run")
    run.prepare()
    run.finish(record := make_record(make_trial()))
    worker = Run(run.folder, identity=run.identity)
    run.folder.rename(tmp_path / "away")
    for read in (worker.records, worker.failures, lambda: worker.missing([record.trial])):
        with pytest.raises(StorageError, match=r"waited 0 s for .*/run to come back"):
            read()
    with pytest.raises(StorageError, match="to come back"):
        worker.record(record.trial)
    Run(run.folder).prepare()  # another folder at the same place
    with pytest.raises(StorageError, match="another folder than the one that this run began in"):
        Run(run.folder, identity=run.identity).finish(record)


def test_another_machine_says_whether_it_sees_the_folder(tmp_path, bucket):
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    run.prepare()
    assert Run(run.folder).seen_here(run.identity) is None
    assert "is not there on" in other.seen_here(run.identity)
    other.folder.mkdir()
    assert "run.id is missing" in other.seen_here(run.identity)
    other.prepare()
    assert "run.id differs" in other.seen_here(run.identity)
    far = Run(bucket)
    far.prepare()
    assert Run(bucket, copy=tmp_path / "b").seen_here(far.identity) is None
    assert "run.id differs" in Run(bucket, copy=tmp_path / "b").seen_here(run.identity)


def test_scratch_files_of_the_dead_are_swept_and_those_of_the_living_are_kept(tmp_path):
    run = Run(tmp_path)
    run.prepare()
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = storage.scratch(Path("a.json")).name
    names = {
        "mine": mine,
        "dead": mine.replace(f"-{os.getpid()}-", f"-{dead.pid}-"),
        "far": ".a.json.far.away-7-0.part",
        "old": ".a.json.far.away-8-0.part",
    }
    for name in names.values():
        (tmp_path / name).touch()
    os.utime(tmp_path / names["old"], (1, 1))
    assert run.sweep() == 2
    left = {path.name for path in tmp_path.glob(".*.part")}
    assert left == {names["mine"], names["far"]}
    assert run.sweep(ended=True) == 1
    assert {path.name for path in tmp_path.glob(".*.part")} == {names["mine"]}


def test_a_container_of_the_same_name_keeps_what_it_writes(tmp_path, monkeypatch):
    """Its process numbers are not those seen here, where nobody may have them."""
    run = Run(tmp_path)
    run.prepare()
    monkeypatch.setattr(storage, "this_boot", lambda: "the same kernel, other process numbers")
    theirs = storage.scratch(tmp_path / "a.json")
    monkeypatch.undo()
    dead = subprocess.Popen(["true"])
    dead.wait()
    theirs = theirs.with_name(theirs.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    theirs.touch()
    assert run.sweep() == 0
    assert theirs.exists()
    assert run.sweep(ended=True) == 1


# buckets


def test_a_bucket_holds_what_a_folder_holds(bucket, tmp_path, make_trial, make_record):
    here, there = (Run(bucket, copy=tmp_path / name) for name in "ab")
    here.prepare()
    trial, other = make_trial(), make_trial(seed=1)
    here.fail(trial, "error", "ValueError: no", "Traceback …", attempts=2)
    assert [f.attempts for f in there.failures()] == [2]
    here.keep_queries(trial, labels=np.arange(3))
    here.finish(make_record(trial))
    assert there.record(trial) == make_record(trial)
    assert (there.failures(), there.with_queries()) == ([], {trial.id})
    assert np.load(there.per_query(trial.id), allow_pickle=False)["labels"].tolist() == [0, 1, 2]
    grid = Grid(name="g", datasets=["glyphs"], backbones=["test_resnet"], losses=["contrastive"])
    here.remember(grid, [trial], [])
    assert there.asked() == here.asked()
    assert there.missing([trial, other]) == [other]
    there.record_path(other).write_text(make_record(other).model_dump_json())  # in one copy alone it is not done
    assert there.record(other) is None
    assert [record.id for record in there.records()] == [trial.id]
    assert here.sub("search").place == f"{bucket}/search"
    assert Run(bucket).address == bucket


def test_a_broken_record_in_a_bucket_is_set_aside_there(bucket, make_trial, make_record):
    said = []
    run, trial = Run(bucket, warn=said.append), make_trial()
    run.prepare()
    run._storage.write(f"records/{trial.id}.json", b'{"id"')
    assert run.records() == []
    assert f"{bucket}/set_aside/{trial.id}" in said[0]
    assert run.missing([trial]) == [trial]
    assert len(run.pull_all(run.folder / "set_aside")) == 1


def test_many_records_are_fetched_at_once_and_only_once(bucket, tmp_path, make_trial, make_record):
    here, there = (Run(bucket, copy=tmp_path / name) for name in "ab")
    here.prepare()
    for seed in range(40):
        here.finish(make_record(make_trial(seed=seed)))
    assert len(there.records()) == 40
    before = {path: path.stat().st_ino for path in (there.folder / "records").iterdir()}
    here.finish(make_record(make_trial(seed=40)))
    assert len(there.records()) == 41
    assert {path: path.stat().st_ino for path in before} == before


def test_the_ledger_of_a_bucket_counts_as_that_of_a_folder(bucket, tmp_path):
    here, there = (Ledger.of(Run(bucket, copy=tmp_path / name)) for name in "ab")
    for ledger in (Ledger.of(Run(tmp_path / "folder")), here):
        first, repeat = ledger.read(**KEY), ledger.read(**KEY)
        assert (first.first, first.repeat, first.checkpoints) == (True, False, 1)
        assert (repeat.first, repeat.repeat, repeat.checkpoints) == (False, True, 1)
    second = there.read(**KEY | {"checkpoint": "bb"})
    assert (second.first, second.repeat, second.checkpoints, second.damaged) == (False, False, 2, ())
    assert there.read(**KEY | {"cell": "another"}).first
    assert set(here.read_again()[KEY["cell"]]) == {"aa", "bb"}
    assert len(here.entries()) == 4


WORKER = """
import os, sys
from pathlib import Path
from harness.config import Trial
from harness.training.trial import Sources, steps
for progress in steps(Trial.model_validate_json(sys.argv[1]), Sources(sys.argv[2], cache=Path(sys.argv[3]))):
    print(progress.epoch, flush=True)
    if sys.argv[4:] == [str(progress.epoch)]: os.kill(os.getpid(), 9)
"""


def work(trial, place, cache, *words):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(
        [sys.executable, "-c", WORKER, trial.model_dump_json(), place, str(CACHE), *words],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_trial_killed_on_one_machine_continues_on_another_from_the_bucket(
    drawn, bucket, tiny, tmp_path, monkeypatch
):
    shutil.copytree(drawn, tmp_path / "cache/metrix-bench")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret := "sentinel-4f1c0a77")
    trial = tiny("proxy_anchor+embedding", epochs=3)
    whole = run_trial(trial, tmp_path / "whole", cache=CACHE)
    killed = work(trial, bucket, tmp_path / "a", "2")
    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, ["1", "2"]), killed.stderr
    finished = work(trial, bucket, tmp_path / "b")
    assert (finished.returncode, finished.stdout.split()) == (0, ["2", "3"]), finished.stderr
    run = Run(bucket, copy=tmp_path / "c")
    assert outcome(run.record(trial)) == outcome(whole)
    assert run.pull_all(run.checkpoints(trial)) == []
    assert len(Ledger.of(run).entries()) == 1
    assert [finding for finding in audit(run) if finding.rule == "FAIR-03"] == []
    assert main(["audit", bucket]) in (0, 1)
    for words in (["report"], ["verify"], ["status"], ["power"], ["trace", trial.arm.label], ["draw", trial.id]):
        assert main([words[0], bucket, *words[1:]]) == 0, words
    assert {"leaderboard.csv", "leaderboard.html"} <= run._storage.names(run.folder)
    assert run._storage.names(run.folder / "figures") == {f"{trial.id}.pdf"}
    holds = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holds == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://AKIA:s3cr3t@b/x", r"s3://…@b/x has credentials in it"),
        ("s3://AKIA:s3/cr3t@b/x", r"s3://…@b/x has credentials in it"),
        ("s3://AKIA:s3cr3t", r"s3://…@… has credentials in it"),
        ("hdfs://b/x", r"hdfs:// is not a bucket; a run is in a folder or at s3, "),
    ],
)
def test_places_that_are_refused(place, said, capsys):
    with pytest.raises(RunError, match=said) as refused:
        Run(place)
    with pytest.raises(SystemExit):
        main(["status", place])
    assert not any(part in f"{refused.value} {capsys.readouterr()}" for part in ("s3cr3t", "cr3t", "AKIA"))


def test_a_bucket_that_is_not_there_or_cannot_be_reached(bucket, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="there is no bucket metrix-none for s3://metrix-none/x; make it first"):
        Run("s3://metrix-none/x").prepare()
    with pytest.raises(RunError, match=f"{bucket} is not a run folder"):
        main_error(bucket)
    with pytest.raises(RunError, match=r"waited 0 s for s3://b1c/x.* to come back"):
        Run("s3://b1c/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1").prepare()


def main_error(place):
    from harness.cli.reading import existing

    existing(place)
