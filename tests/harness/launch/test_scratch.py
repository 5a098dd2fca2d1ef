"""Folders in /tmp are removed after their process has ended, and not before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launch import scratch

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys
from pathlib import Path
from harness.launch import scratch
scratch.PLACE = Path(sys.argv[1])
with scratch.scratch("ray") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
NEW_NUMBERS = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "PLACE", tmp_path)
    return tmp_path


@pytest.fixture
def hold(place):
    """Start a process that uses a folder, optionally under another program; return both."""
    started = []

    def start(*words) -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen(
            [*words, sys.executable, "-c", HOLDER, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_is_kept_while_its_process_lives_and_swept_when_it_was_killed(hold):
    process, folder = hold()
    scratch.sweep()
    assert folder.exists()
    process.kill()
    process.wait()
    assert folder.exists()
    scratch.sweep()
    assert not folder.exists()


def test_a_folder_of_another_container_is_kept(hold):
    """The number of its process is unused here, or used by another process."""
    if subprocess.run([*NEW_NUMBERS, "true"], stderr=subprocess.PIPE).returncode:
        pytest.skip("no namespace for process numbers is permitted here")
    _, folder = hold(*NEW_NUMBERS)
    scratch.sweep()
    assert folder.exists()


def test_a_folder_is_kept_while_a_child_that_inherits_it_lives(place):
    made = scratch.make("head")
    child = subprocess.Popen(["sleep", "60"], pass_fds=[made.lock])
    os.close(made.lock)
    scratch.sweep()
    assert made.folder.exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    scratch.sweep()
    assert not made.folder.exists()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(place, monkeypatch):
    lock, calls = scratch.fcntl.flock, []

    def swept_meanwhile(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            scratch.sweep()
        lock(descriptor, how)

    monkeypatch.setattr(scratch.fcntl, "flock", swept_meanwhile)
    made = scratch.make("tune")
    assert list(place.iterdir()) == [made.folder]
    made.remove()
    assert list(place.iterdir()) == []


def test_what_others_and_older_versions_left_is_not_touched(place):
    """Older versions took no lock and put the process number into the name; one of them may be running."""
    names = {"metrix-ray-1234-abcdefgh", "metrix-tests", "other"}
    for name in names:
        (place / name).mkdir()
    scratch.sweep()
    assert {path.name for path in place.iterdir()} == names
