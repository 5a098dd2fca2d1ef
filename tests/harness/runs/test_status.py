"""The status that is made from a run folder."""

import json
import os
import time

from harness.runs.run import Run
from harness.runs.status import status


def test_status_of_a_running_a_silent_and_an_ended_run(tmp_path, make_trial, make_record):
    run = Run(tmp_path)
    run.prepare()
    done, running, failed = (make_trial(seed=seed) for seed in range(3))
    run.finish(make_record(done, 0.75))
    run.fail(failed, "error", "ValueError: no", "", 3)
    trial = {"id": running.id, "where": "node a", "attempt": 2, "for_s": 61.0, "epoch": 1, "epochs": 2}
    state = {
        "state": "running",
        "driver": "process 1 on b",
        "running": [trial],
        "time_left_s": 7200.0,
        "spent_s": 300.0,
        "slots": 4,
        "updated": "then",
    }
    run.write_state(state)
    found = status(run)
    assert found.title == f"{tmp_path}: 1 done, 1 running, 1 failed"
    assert found.rows == (
        (running.id, "running on node a, attempt 2", "1/2", "", "61"),
        (failed.id, "failed 3x: ValueError: no", "", "", ""),
        (done.id, "done", "", "R@1 75.00", "3"),
    )
    assert "time left: about 2.0 h on 4 slots" in found.sentences
    assert any(sentence.startswith("driver: process 1 on b, last seen") for sentence in found.sentences)
    old = time.time() - 600
    os.utime(tmp_path / "state.json", (old, old))
    assert "it is dead or its storage is unavailable" in " ".join(status(run).sentences)
    run.write_state({**state, "state": "ended"})
    assert "driver: none; the last one, process 1 on b, ended at then" in status(run).sentences
    written = run.state()
    assert written is not None
    json.dumps(written[0])
