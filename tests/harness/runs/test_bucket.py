"""Runs in a bucket of a real S3 server."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.audit import audit
from harness.cli import main
from harness.data.cache import default_folder
from harness.fairness.ledger import Ledger
from harness.grid import Grid
from harness.runs.errors import RunError
from harness.runs.run import Run
from harness.training.trial import run_trial

CACHE = default_folder()  # of datasets; tests of buckets have a cache folder of their own
KEY = {"cell": "glyphs/test_resnet/contrastive/s0", "checkpoint": "aa", "split": "s1", "evaluator": "e1"}


def outcome(record):
    """Return what must be equal bit for bit."""
    return record.test, record.selected_epoch, [(e.loss, e.validation) for e in record.curve]


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
    grid = Grid.model_validate(
        {"name": "g", "datasets": ["glyphs"], "backbones": ["test_resnet"], "losses": ["contrastive"]}
    )
    here.remember(grid, [trial], [])
    assert there.requested() == here.requested()
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


def test_a_bucket_that_is_not_there_or_cannot_be_reached(bucket, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="there is no bucket metrix-none for s3://metrix-none/x; create it"):
        Run("s3://metrix-none/x").prepare()
    with pytest.raises(RunError, match=f"{bucket} is not a run folder"):
        main_error(bucket)
    with pytest.raises(RunError, match=r"waited 0 s for s3://b1c/x.* to become available"):
        Run("s3://b1c/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1").prepare()


def main_error(place):
    from harness.cli.reading import existing

    existing(place)
