"""Writes wait for a full disk and for a run folder that is unavailable."""

import os
import threading
import time

import pytest

from harness.runs.errors import StorageError
from harness.runs.run import Run
from harness.training.checkpoint import CheckpointError
from harness.training.trial import Sources, run_trial, steps


def outcome(record):
    """Return what must be equal bit for bit."""
    return record.test, record.selected_epoch, [(e.loss, e.validation) for e in record.curve]


def after(seconds, act):
    """Call `act` while the test goes on."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def test_checkpoints_and_records_wait_for_a_full_disk(tiny, tmp_path, small_disk, capfd):
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
    assert capfd.readouterr().err.count("waiting for free space on") >= 2
    assert list((disk / "run").rglob("*.part")) == []


def test_a_disk_that_stays_full_keeps_the_previous_checkpoint(tiny, small_disk, monkeypatch):
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0.3")
    trial, disk = tiny(epochs=3), small_disk(16 * 2**20)
    running = steps(trial, Sources(disk / "run"))
    next(running)
    fill = disk / "fill"
    fill.write_bytes(b"0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    with pytest.raises(CheckpointError, match=r"waited 0 s for free space on .*No result is lost"):
        next(running)
    fill.unlink()
    assert [progress.epoch for progress in steps(trial, Sources(disk / "run"))] == [1, 2, 3]


def test_a_missing_run_folder_is_waited_for_and_never_created_again(tiny, tmp_path, capfd):
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
    assert f"waiting for {folder} to become available" in capfd.readouterr().err


def test_a_missing_run_folder_is_not_an_empty_one(tmp_path, make_trial, make_record, monkeypatch):
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0.2")
    run = Run(tmp_path / "run")
    run.prepare()
    run.finish(record := make_record(make_trial()))
    worker = Run(run.folder, identity=run.identity)
    run.folder.rename(tmp_path / "away")
    for read in (worker.records, worker.failures, lambda: worker.missing([record.trial])):
        with pytest.raises(StorageError, match=r"waited 0 s for .*/run to become available"):
            read()
    with pytest.raises(StorageError, match="to become available"):
        worker.record(record.trial)
    Run(run.folder).prepare()  # another folder at the same place
    with pytest.raises(StorageError, match="is not the folder in which this run began"):
        Run(run.folder, identity=run.identity).finish(record)
