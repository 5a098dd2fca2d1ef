"""A grid on a cluster with its results in a bucket; trials over two (counted) GPUs; access to a cluster."""

import re
import subprocess
import sys
from itertools import chain

import pytest
import timm
import yaml
from pyarrow.fs import FileSelector, FileSystem
from safetensors.torch import save_file

from harness.grid import Grid
from harness.runs.run import Run
from harness.training.trial import run_trial
from tests.cluster.conftest import TRIALS
from tests.cluster.consistency import inconsistencies, processes, records, scores
from tests.cluster.machines import ROOT, Machines

pytestmark = pytest.mark.slow  # a minute each: make test ARGS='-m slow'


def test_results_go_to_a_bucket(small, undisturbed, machines, drive, bucket):
    """There is no shared folder: every node has a working copy, and so has the process that checks the results."""
    cluster = machines()
    driver = drive(cluster, "run", small, "--out", bucket, "--track", "tensorboard")
    assert driver.ends() == 0, driver.text
    run = Run(bucket)
    assert len(run.records()) == TRIALS
    assert scores(run.folder) == scores(undisturbed)
    written = run.state()
    assert written is not None
    assert written[0]["state"] == "ended"
    assert f"written: {bucket}/leaderboard.csv" in driver.text
    curves = FileSelector(f"{bucket.removeprefix('s3://')}/trackers", recursive=True)
    files, _ = FileSystem.from_uri(bucket)
    assert sum("events.out" in found.path for found in files.get_file_info(curves)) == TRIALS


def test_a_trial_over_two_gpus_is_one_trial_on_one_node(small, machines, drive, tmp_path):
    """The cluster counts two GPUs on one node and none on the other; processors stand in for them."""
    cluster = machines((2, 2), (2, 0))
    words = ("--device", "cpu", "--set", "gpus_per_trial=2", "--losses", "contrastive", "--levels", "embedding")
    driver = drive(cluster, "run", small, "--out", tmp_path / "run", *words)
    assert driver.ends() == 0, driver.text
    (record,) = records(tmp_path / "run").values()
    assert record["provenance"]["ranks"] == 2
    assert "GPU 0,1" in driver.text
    assert inconsistencies(tmp_path / "run") == []


def test_every_node_computes_the_features_of_a_frozen_network_once(small, machines, drive, tmp_path):
    """The nodes have their own caches, so two files are computed, by one process each, before the first trial."""
    weights = tmp_path / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    grid = yaml.safe_load(small.read_text())
    grid |= {"name": "frozen", "floors": ["features"], "model": {"dim": 16, "backbone": "frozen"}}
    grid["backbones"] = [{"name": "test_resnet", "pretrained": str(weights)}]
    (file := tmp_path / "frozen.yaml").write_text(yaml.safe_dump(grid))
    cluster, told = machines(), "computing the features of"
    driver = drive(cluster, "run", file, "--out", tmp_path / "run")
    assert driver.ends() == 0, driver.text
    lines = driver.text.splitlines()
    assert sum(told in line for line in lines) == 2, driver.text
    first = next(place for place, line in enumerate(lines) if "started" in line)
    assert not any(told in line for line in lines[first:])
    again = drive(cluster, "run", file, "--out", tmp_path / "again")
    assert again.ends() == 0, again.text
    assert told not in again.text
    for trial in Grid.load(file).trials():
        run_trial(trial, tmp_path / "alone")
    assert len(records(tmp_path / "run")) == TRIALS + 1
    assert scores(tmp_path / "run") == scores(tmp_path / "again") == scores(tmp_path / "alone")


SEND = """
import sys
from pathlib import Path
from harness.grids import texts
from harness.launch import environment, remote
environment.prepare("there")
import ray
ray.init(sys.argv[1], log_to_driver=False)
words, files = remote.portable(["run", *sys.argv[2:], "--address", "auto"], texts(sys.argv[2]))
head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(remote.Command)
sys.exit(remote._print_lines(ray, head.remote(words, files), sys.stdout))
"""


def test_a_command_that_is_sent_to_the_head(small, machines, tmp_path):
    """As with ray:// after it has connected, the head runs a grid that includes a file of this machine."""
    (tmp_path / "here/parts").mkdir(parents=True)
    (tmp_path / "here/parts/small.yaml").write_text(small.read_text())
    (tmp_path / "here/all.yaml").write_text("name: all\ninclude: [parts/small.yaml]\n")
    cluster, folder = machines((2, 0)), tmp_path / "run"
    words = ["all.yaml", "--out", str(folder), "--losses", "contrastive", "--levels", "baseline"]
    done = subprocess.run(
        [sys.executable, "-c", SEND, cluster.address, *words],
        env=cluster.environment,
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trials, 0 already done" in done.stdout
    assert len(records(folder)) == 1
    assert inconsistencies(folder) == []
    assert Run(folder).requested().grids[0].name == "all"


JOIN = """
import sys
from harness.launch import environment
environment.prepare("there")
from harness.launch import cluster
cluster._on_loopback = lambda: False
try:
    with cluster.joined(sys.argv[1]):
        print("joined")
except cluster.RunError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("authentication", "output"), [("disabled", "accepts anyone who can reach it"), ("token", "joined")]
)
def test_a_cluster_without_authentication_is_refused(tmp_path, authentication, output):
    """It listens on loopback, but the check is made to believe that it does not."""
    cluster = Machines(tmp_path, (), authentication)
    try:
        environment = {**cluster.environment, "RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            [sys.executable, "-c", JOIN, cluster.address],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert output in done.stdout, done.stdout + done.stderr
    finally:
        cluster.end()


def test_everything_listens_on_loopback(small, machines, drive, tmp_path):
    """No socket of a cluster of this machine or of its driver can be reached from another machine."""
    cluster = machines((1, 0))
    driver = drive(cluster, "run", small, "--out", tmp_path / "run")
    driver.says("started")
    mine = set(processes(cluster.mark))
    open_to_others = [
        line for line in listeners() if line[0] in mine and not line[1].startswith(("127.", "::ffff:127."))
    ]
    assert len(mine) > 5
    assert open_to_others == []
    driver.kill()


def listeners() -> list[tuple[int, str]]:
    """Return (process, address) of every listening TCP socket."""
    found = []
    for line in subprocess.run(["ss", "-Htlnp"], capture_output=True, text=True).stdout.splitlines():
        address = line.split()[3].rpartition(":")[0].strip("[]")
        found += [(int(pid), address) for pid in re.findall(r"pid=(\d+)", line)]
    return found


TUNED = ("protocol=tuned", "search.trials=2", "search.round_of=2", "losses=[contrastive]", "epochs=3")


def test_a_search_keeps_its_trials_in_the_bucket(small, machines, drive, bucket, tmp_path):
    """After a driver is killed during a search, the next one makes the same proposals and the same choice.

    A third machine, without any of the files, reports what the first two wrote.
    """
    from harness.cli import main

    cluster, tuned = machines(), ("run", small, *chain(*(("--set", text) for text in TUNED)))
    first = drive(cluster, *tuned, "--out", bucket)
    first.until(lambda: len(Run(bucket).sub("search").records()) >= 2)
    first.kill()
    found = {record.id: record for record in Run(bucket).sub("search").records()}
    second = drive(cluster, *tuned, "--out", bucket)
    assert second.ends() == 0, second.text
    searched = {record.id: record for record in Run(bucket).sub("search").records()}
    assert len(searched) == 4
    assert {name: searched[name] for name in found} == found
    assert all(not record.test for record in searched.values())
    undisturbed_driver = drive(cluster, *tuned, "--out", tmp_path / "undisturbed")
    assert undisturbed_driver.ends() == 0, undisturbed_driver.text
    chosen = {record.trial.arm.label: record for record in Run(bucket).records()}
    assert len(chosen) == 2
    for record in Run(tmp_path / "undisturbed").records():
        assert chosen[record.trial.arm.label].trial == record.trial
        assert chosen[record.trial.arm.label].test == record.test
    assert main(["report", bucket, "--out", str(tmp_path / "report")]) == 0
    assert "contrastive" in (tmp_path / "report/leaderboard.csv").read_text()
