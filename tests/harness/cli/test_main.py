"""Exit codes, bugs, terminal encodings and closed pipes: the same for every command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.cli.conftest import TINY

ROOT = Path(__file__).parents[3]


def test_a_bug_is_a_traceback_and_a_request_to_report_it(command, monkeypatch):
    def broken(*_):
        raise ValueError("of a library")

    monkeypatch.setattr("harness.cli.running.load_grid", broken)
    code, text = command("plan", "mine.yaml")
    assert code == 1
    assert "Traceback" in text
    assert text.endswith("not a mistake in the command: please report it with the lines above\n")


@pytest.mark.parametrize("words", [("--debug", "plan", "qick"), ("plan", "qick", "--debug"), ("plan", "qick")])
def test_debug_shows_where_an_error_was_raised(command, words):
    code, text = command(*words)
    assert (code, "Traceback" in text) == (2, "--debug" in words)
    assert "did you mean 'quick'" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_gets_replacement_characters(encoding, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", "harness.cli", "list", "grids"]
    done = subprocess.run(words, env=environment, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"quick" in done.stdout


@pytest.mark.parametrize("words", ["audit --rules", "list losses", "trial mine.yaml --arm contrastive"])
def test_a_closed_pipe_ends_without_a_traceback(words, tmp_path):
    (tmp_path / "mine.yaml").write_text(TINY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words.split()],
        cwd=tmp_path,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
