"""Fault injection: workers, nodes and drivers die; nothing is lost or run twice, and the scores stay the same."""

import json
import os
import re
import resource
import signal
import time
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

import pytest

from tests import disks
from tests.cluster.conftest import TRIALS
from tests.cluster.consistency import inconsistencies, processes, records, scores, workers
from tests.cluster.machines import FAKETIME, Machines

pytestmark = pytest.mark.slow  # a minute each: make test ARGS='-m slow'


def workers_of(cluster: Machines, node: int) -> list[int]:
    """Return the workers that train on one node, recognised by its cache."""
    return [pid for pid in workers(cluster.mark) if pid in processes(f"/cache-{node}\0")]


def state(folder: Path) -> dict:
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_killed_worker_a_killed_node_and_a_node_that_joins_later(small, undisturbed, machines, drive, tmp_path):
    """A run that loses a worker, then a node, and gains a node has the records and scores of an undisturbed run.

    Ray takes 15 seconds to notice a dead node, in which the rest of the grid could end, so a trial is suspended.
    """
    cluster, folder = machines(), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: any(log.read_text().count("epoch") for log in folder.glob("logs/*.log")))
    os.kill(workers(cluster.mark)[0], signal.SIGKILL)
    driver.says("; retrying")
    cluster.kill(0)
    driver.until(lambda: workers_of(cluster, 1))
    (suspended,) = workers_of(cluster, 1)
    os.kill(suspended, signal.SIGSTOP)
    cluster.add()
    driver.says("left; its trials continue elsewhere")
    driver.says("joined with 1 processor and")
    os.kill(suspended, signal.SIGCONT)
    assert driver.ends() == 0, driver.text
    assert inconsistencies(folder) == []
    assert scores(folder) == scores(undisturbed)
    assert len(records(folder)) == TRIALS
    started = re.findall(r"started   (\S+ \S+ s\d)(  attempt 2)?", driver.text)
    again = next(place for place, (_, attempt) in enumerate(started) if attempt)
    first_two = {name for name, _ in started[:2]}
    assert started[again][0] in first_two  # before any trial that had not started


def test_a_killed_driver_is_replaced_and_a_second_one_is_refused(small, undisturbed, machines, drive, tmp_path):
    cluster, folder = machines((2, 0)), tmp_path / "run"
    first = drive(cluster, "run", small, "--out", folder)
    first.until(lambda: (folder / "lock").exists())
    second = drive(cluster, "run", small, "--out", folder)
    assert second.ends() == 2, second.text
    assert "is in use by process" in second.text
    first.until(lambda: len(records(folder)) >= 1)
    first.kill()
    kept = {path.name: path.read_bytes() for path in (folder / "records").iterdir()}
    began = time.monotonic()
    third = drive(cluster, "run", small, "--out", folder)
    third.says("started")
    print(f"training again {time.monotonic() - began:.0f} s after the restart")
    assert third.ends() == 0, third.text
    assert {name: (folder / "records" / name).read_bytes() for name in kept} == kept
    assert inconsistencies(folder) == []
    assert scores(folder) == scores(undisturbed)


def test_a_grid_that_no_node_can_run_and_an_address_without_a_cluster(small, machines, drive, tmp_path):
    """Both are reported before anything runs."""
    cluster = machines((1, 0))
    driver = drive(cluster, "run", small, "--out", tmp_path / "run", "--set", "threads=2")
    assert driver.ends() == 2
    assert "a trial needs 2 processors and 0 GPUs" in driver.text
    driver = drive(cluster, "run", small, "--out", tmp_path / "other", address="127.0.0.1:1")
    assert driver.ends() == 2
    assert "no ray cluster can be joined at 127.0.0.1:1" in driver.text


def test_a_run_is_observed_and_stopped_from_another_process(small, machines, drive, tmp_path, capsys):
    from harness.cli import main

    cluster, folder = machines((1, 0)), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: state(folder).get("running"))
    main(["status", str(folder)])
    output = capsys.readouterr().out
    assert re.search(r"running on \S+", output)
    assert "last seen" in output
    assert main(["logs", str(folder), state(folder)["running"][0]["id"]]) == 0
    assert "attempt 1 on" in capsys.readouterr().out
    assert main(["stop", str(folder)]) == 0
    assert driver.ends() == 130, driver.text
    assert "interrupted with" in driver.text
    assert not (folder / "stop").exists()
    main(["status", str(folder)])
    assert "driver: none" in capsys.readouterr().out


@pytest.mark.skipif(FAKETIME is None, reason="there is no libfaketime: apt-get install faketime")
def test_clocks_of_nodes_may_be_hours_apart(small, undisturbed, machines, drive, tmp_path):
    cluster, folder = machines((1, 0)), tmp_path / "run"
    cluster.add(hours=-5)
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: len(state(folder).get("running", [])) == 2)
    assert driver.ends() == 0, driver.text
    assert inconsistencies(folder) == []
    assert scores(folder) == scores(undisturbed)
    ended = [datetime.fromisoformat(record["finished"]) for record in records(folder).values()]
    assert max(ended) - min(ended) > timedelta(hours=4)  # so the second node had another clock, and ran trials


def epochs(folder: Path) -> int:
    """Return the number of epochs in the logs of all trials and attempts."""
    return sum(log.read_text().count("  epoch ") for log in folder.glob("logs/*.log"))


@pytest.fixture
def patient(monkeypatch):
    """Let nodes and drivers wait longer for storage than other tests do (users wait ten minutes)."""
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "120")


@pytest.mark.usefixtures("patient")
def test_a_run_folder_that_is_unavailable_for_half_a_minute(small, undisturbed, machines, drive, tmp_path):
    """Driver and trials wait; none fails, none starts over, and the folder is not created again."""
    cluster, folder = machines(), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: epochs(folder) >= 2)
    folder.rename(tmp_path / "away")
    time.sleep(30)
    assert not folder.exists()
    before = epochs(tmp_path / "away")
    assert before < 8 * TRIALS
    (tmp_path / "away").rename(folder)
    assert driver.ends() == 0, driver.text
    assert inconsistencies(folder) == []
    assert scores(folder) == scores(undisturbed)
    assert all(log.read_text().count("attempt") == 1 for log in folder.glob("logs/*.log"))


@pytest.mark.usefixtures("patient")
def test_a_disk_that_is_full_for_a_while(small, undisturbed, machines, drive, small_disk):
    """Neither a record nor a checkpoint can be written; trials wait for free space and continue."""
    cluster, disk = machines(), small_disk(12 * 10**8)  # of which the preflight wants a gigabyte
    folder = disk / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: epochs(folder) >= 2)
    filler = disks.fill(disk)
    time.sleep(5)  # writes that had begun are completed
    full = epochs(folder)
    time.sleep(10)
    assert epochs(folder) <= full + 2  # a file that replaces another frees space for the next
    assert epochs(folder) < 8 * TRIALS
    assert driver.process.poll() is None
    filler.unlink()
    assert driver.ends() == 0, driver.text
    assert inconsistencies(folder) == []
    assert scores(folder) == scores(undisturbed)


def test_a_trial_that_hangs_continues_on_another_node(small, undisturbed, machines, drive, tmp_path):
    """A suspended process, whose own timer does not run either, is killed from outside."""
    cluster, folder = machines(), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder, "--set", "epoch_timeout_s=15", patience_s=5)
    driver.until(lambda: len(state(folder).get("running", [])) == 2 and epochs(folder) >= 2)
    trial_id = state(folder)["running"][0]["id"]
    pid = int(re.findall(r"process (\d+)", (folder / f"logs/{trial_id}.log").read_text())[0])
    os.kill(pid, signal.SIGSTOP)
    driver.says("no epoch ended within 15 s")
    assert driver.ends() == 0, driver.text
    assert inconsistencies(folder) == []
    assert scores(folder) == scores(undisturbed)
    assert not Path(f"/proc/{pid}").exists()
    label = records(folder)[trial_id]["arm"]
    first, second, *_ = re.findall(rf"started   \S+ {re.escape(label)} s0.*  on (\S+)", driver.text)
    assert first != second


def test_a_trial_that_runs_out_of_memory(small, machines, drive, tmp_path):
    """After a limit on its process is set from outside, the trial continues with a forward pass in chunks."""
    from harness.grid import Grid
    from harness.training.trial import run_trial

    one = ("losses=[contrastive]", "levels=[baseline]", "epochs=2")
    changes = (*one, "norm=frozen", "batch_size=240", "examples_per_class=20", "side_px=160")
    cluster, folder = machines((1, 0)), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder, *chain(*(("--set", text) for text in changes)))
    driver.until(lambda: [log for log in folder.glob("logs/*.log") if "attempt 1" in log.read_text()])
    (pid,) = workers(cluster.mark)
    # Measured: with what it has yet to import, chunks of 60 rows take 960 MB more, the batch of 240 takes 1690 MB.
    limit = private_bytes(pid) + 1320 * 2**20
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    assert driver.ends() == 0, driver.text
    assert inconsistencies(folder) == []
    (record,) = records(folder).values()
    assert record["notes"][0] == "out of memory at epoch 1; the forward ran in chunks of 60 rows"
    (trial,) = Grid.load(small, changes).trials()
    whole = run_trial(trial, tmp_path / "whole")
    assert record["test"] == pytest.approx(whole.test, abs=0.01)  # rounding moves a query or two of 332


def private_bytes(pid: int) -> int:
    """Return the bytes that count towards RLIMIT_DATA."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmData:\s+(\d+) kB", status)[0]) * 1024


def test_a_report_on_an_unfinished_run_is_marked_partial(small, machines, drive, tmp_path, capsys):
    from harness.cli import main

    cluster, folder = machines((1, 0)), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: records(folder))
    os.kill(workers(cluster.mark)[0], signal.SIGSTOP)  # so that the run does not end meanwhile
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    assert 0 < len(records(folder)) < TRIALS
    report = (tmp_path / "report/leaderboard.md").read_text()
    assert re.search(rf"partial: \d of {TRIALS} trials", report)
    driver.kill()
