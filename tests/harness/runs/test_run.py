"""The run folder: atomic, never lost, with one driver."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from harness.grid import Grid
from harness.runs.errors import RunError
from harness.runs.run import Run


@pytest.fixture
def run(tmp_path):
    warnings = []
    run: Any = Run(tmp_path / "run", warn=warnings.append)
    run.warnings = warnings
    run.prepare()
    return run


def test_a_record_reads_back_as_it_was_written(run, make_trial, make_record):
    record = make_record(make_trial())
    run.finish(record)
    assert run.record(record.trial) == record
    assert run.records() == [record]
    assert [path.name for path in (run.folder / "records").iterdir()] == [f"{record.id}.json"]


@pytest.mark.parametrize("rest", ["", '{"id": "x"', "{}"])
def test_a_truncated_record_is_named_set_aside_and_missing(run, make_trial, make_record, rest):
    trial = make_trial()
    run.finish(make_record(trial))
    run.record_path(trial).write_text(rest)
    assert run.records() == []
    assert trial.id in run.warnings[0]
    assert [path.read_text() for path in (run.folder / "set_aside").iterdir()] == [rest]
    assert run.record(trial) is None


@pytest.mark.parametrize("id", ["../../escaped", "a/b", "..", ".hidden", "a\\b", ""])
def test_an_id_that_leads_out_of_the_folder_is_set_aside(run, make_trial, make_record, id):
    trial = make_trial()
    run.finish(make_record(trial))
    content = json.loads(run.record_path(trial).read_text())
    run.record_path(trial).write_text(json.dumps({**content, "id": id}))
    assert run.records() == []
    assert "is not an id: it leads out of the run folder" in run.warnings[0]


def test_a_failure_is_kept_until_the_trial_succeeds(run, make_trial, make_record):
    trial = make_trial()
    run.fail(trial, "error", "ValueError: no", "Traceback …", attempts=3)
    assert [(f.kind, f.attempts) for f in run.failures()] == [("error", 3)]
    run.finish(make_record(trial))
    assert run.failures() == []


def test_a_crash_while_writing_leaves_the_old_file_and_no_other(run, make_trial, make_record, monkeypatch):
    trial = make_trial()
    run.finish(make_record(trial, score=0.5))
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "0")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match=r"No space.*No result is lost"):
        run.finish(make_record(trial, score=0.9))
    assert run.record(trial).test["R@1"] == 0.5
    assert len(list((run.folder / "records").iterdir())) == 1


def test_two_drivers_in_one_folder(run):
    """The second is refused; the kernel releases the folder when the first dies, however it dies."""
    code = (
        "import sys; from harness.runs.run import Run; run = Run(sys.argv[1])\n"
        "with run.lock(): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"in use by process {first.pid}.*OUT="), run.lock():
        pass
    first.kill()
    first.wait()
    with run.lock():
        assert f"process {os.getpid()}" in (run.folder / "lock").read_text()


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc"), reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write in .*file/run: Not a directory; choose another folder"):
        Run(tmp_path / "file" / "run").prepare()


def test_a_tuned_grid_plans_what_its_search_chose(run, make_trial):
    """The grid's own settings are the start of the search, not missing trials."""
    common = {"name": "g", "datasets": ["glyphs"], "backbones": ["test_resnet"], "losses": ["nca"], "seeds": (0,)}
    grid = Grid.model_validate({**common, "levels": ["baseline"], "floors": ["untrained"], "protocol": "tuned"})
    floor, start = grid.trials()
    chosen = start.model_copy(update={"arm": start.arm.model_copy(update={"tuned": "nca"})})
    run.remember(grid, [floor, chosen], [])
    assert run.requested().trials == (floor, chosen)
    assert chosen.id != start.id


def test_another_machine_reports_whether_it_sees_the_folder(tmp_path, bucket):
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    run.prepare()
    assert run.identity is not None
    assert Run(run.folder).problem_here(run.identity) is None
    assert "does not exist on" in (other.problem_here(run.identity) or "")
    other.folder.mkdir()
    assert "run.id is missing" in (other.problem_here(run.identity) or "")
    other.prepare()
    assert "run.id differs" in (other.problem_here(run.identity) or "")
    far = Run(bucket)
    far.prepare()
    assert far.identity is not None
    assert Run(bucket, copy=tmp_path / "b").problem_here(far.identity) is None
    assert "run.id differs" in (Run(bucket, copy=tmp_path / "b").problem_here(run.identity) or "")
