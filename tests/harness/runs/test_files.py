"""Scratch files of dead processes are removed, those of running ones are kept."""

import os
import subprocess
from pathlib import Path

from harness.runs import files, process
from harness.runs.run import Run


def test_scratch_files_of_dead_processes_are_removed_and_those_of_running_ones_kept(tmp_path):
    run = Run(tmp_path)
    run.prepare()
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = files.scratch_path(Path("a.json")).name
    names = {
        "mine": mine,
        "dead": mine.replace(f"-{os.getpid()}-", f"-{dead.pid}-"),
        "far": ".a.json.far.away-7-0.part",
        "old": ".a.json.far.away-8-0.part",
    }
    for name in names.values():
        (tmp_path / name).touch()
    os.utime(tmp_path / names["old"], (1, 1))
    assert run.remove_scratch() == 2
    left = {path.name for path in tmp_path.glob(".*.part")}
    assert left == {names["mine"], names["far"]}
    assert run.remove_scratch(ended=True) == 1
    assert {path.name for path in tmp_path.glob(".*.part")} == {names["mine"]}


def test_a_container_of_the_same_name_keeps_what_it_writes(tmp_path, monkeypatch):
    """Its process numbers belong to another namespace; here they may be unused."""
    run = Run(tmp_path)
    run.prepare()
    monkeypatch.setattr(process, "this_boot", lambda: "the same kernel, other process numbers")
    theirs = files.scratch_path(tmp_path / "a.json")
    monkeypatch.undo()
    dead = subprocess.Popen(["true"])
    dead.wait()
    theirs = theirs.with_name(theirs.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    theirs.touch()
    assert run.remove_scratch() == 0
    assert theirs.exists()
    assert run.remove_scratch(ended=True) == 1
