"""A cluster whose workers, nodes and drivers die: nothing is lost, nothing runs twice, the scores stay the same."""

import json
import os
import re
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.cluster.books import records, scores, workers, wrong
from tests.cluster.conftest import TRIALS
from tests.cluster.machines import FAKETIME

pytestmark = pytest.mark.slow  # a minute each: make test ARGS='-m slow'


def state(folder: Path) -> dict:
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_killed_worker_a_killed_node_and_one_that_comes_later(small, undisturbed, machines, drive, tmp_path):
    """One run that loses a worker, then a node, and gains a node: its books and scores are those of a quiet run."""
    cluster, folder = machines(), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: any(log.read_text().count("epoch") for log in folder.glob("logs/*.log")))
    os.kill(workers(cluster.mark)[0], signal.SIGKILL)
    driver.says("it is tried again")
    cluster.kill(0)
    cluster.add()
    assert driver.ends() == 0, driver.text
    assert wrong(folder) == []
    assert scores(folder) == scores(undisturbed)
    assert len(records(folder)) == TRIALS
    started = re.findall(r"started   (\S+ \S+ s\d)(  attempt 2)?", driver.text)
    again = next(place for place, (_, attempt) in enumerate(started) if attempt)
    first_two = {name for name, _ in started[:2]}
    assert started[again][0] in first_two  # before any trial that had not started
    assert "left; its trials go on elsewhere" in driver.text
    assert "joined with 1 processors" in driver.text


def test_a_killed_driver_is_replaced_and_two_are_one_too_many(small, undisturbed, machines, drive, tmp_path):
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
    assert wrong(folder) == []
    assert scores(folder) == scores(undisturbed)


def test_a_grid_that_no_node_can_run_and_a_cluster_that_is_none(small, machines, drive, tmp_path):
    """Said before anything runs."""
    cluster = machines((1, 0))
    driver = drive(cluster, "run", small, "--out", tmp_path / "run", "--set", "threads=2")
    assert driver.ends() == 2
    assert "a trial wants 2 processors and 0 GPUs" in driver.text
    driver = drive(cluster, "run", small, "--out", tmp_path / "other", address="127.0.0.1:1")
    assert driver.ends() == 2
    assert "no ray cluster can be joined at 127.0.0.1:1" in driver.text


def test_a_run_is_seen_and_stopped_from_elsewhere(small, machines, drive, tmp_path, capsys):
    from harness.cli import main

    cluster, folder = machines((1, 0)), tmp_path / "run"
    driver = drive(cluster, "run", small, "--out", folder)
    driver.until(lambda: state(folder).get("running"))
    main(["status", str(folder)])
    said = capsys.readouterr().out
    assert re.search(r"running on \S+", said)
    assert "heard of" in said
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
    assert wrong(folder) == []
    assert scores(folder) == scores(undisturbed)
    ended = [datetime.fromisoformat(record["finished"]) for record in records(folder).values()]
    assert max(ended) - min(ended) > timedelta(hours=4)  # so the second node's clock was another, and ran trials
