"""The ledger distinguishes first, repeated and second reads, and survives crashes and concurrent readers."""

import json
import multiprocessing
import os

import pytest

from harness.fairness.ledger import Ledger

KEY = {"cell": "cub200/resnet50/contrastive/s0", "checkpoint": "aa", "split": "s1", "evaluator": "e1"}


def test_first_repeat_and_second_read(tmp_path):
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    first = ledger.read(**KEY)
    assert (first.first, first.repeat, first.checkpoints, first.counts_once) == (True, False, 1, True)
    repeat = ledger.read(**KEY)
    assert (repeat.first, repeat.repeat, repeat.counts_once) == (False, True, True)
    rescored = ledger.read(**KEY | {"evaluator": "e2"})
    assert (rescored.first, rescored.repeat, rescored.counts_once) == (False, False, True)
    second = ledger.read(**KEY | {"checkpoint": "bb"})
    assert (second.first, second.repeat, second.checkpoints, second.counts_once) == (False, False, 2, False)
    assert not ledger.read(**KEY).counts_once, "the mark stays: both scores have been seen"
    assert ledger.read(**KEY | {"cell": "cub200/resnet50/contrastive/s1"}).first
    assert ledger.read_again() == {KEY["cell"]: ("aa", "bb")}
    assert len(ledger.entries()) == 6


def test_a_read_is_on_disk_when_the_call_returns(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.read(**KEY)
    (line,) = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in KEY} == KEY


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_truncated_last_line_is_named_and_the_next_read_gets_its_own_line(tmp_path, kept):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.read(**KEY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    read = ledger.read(**KEY | {"checkpoint": "bb"})
    assert read.damaged == (2,) == ledger.damaged()
    assert [entry.checkpoint for entry in ledger.entries()] == ["aa", "bb"]
    assert not read.counts_once


def test_a_line_that_only_lost_its_end_of_line_counts(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.read(**KEY)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    read = ledger.read(**KEY)
    assert read.repeat
    assert read.damaged == ()
    assert len(ledger.entries()) == 2


def _read_many(path, process):
    reads = [
        Ledger(path).read(f"cell{i}", f"checkpoint of {process}" if i == 0 else "the same", "split", "evaluator")
        for i in range(25)
    ]
    os._exit(sum(read.first for read in reads))


def test_processes_at_once_lose_no_line_and_find_one_first_each(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_many, args=(path, i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    ledger = Ledger(path)
    assert len(ledger.entries()) == 100
    assert ledger.damaged() == ()
    assert sum(process.exitcode or 0 for process in processes) == 25, "each cell has exactly one first read"
    assert set(ledger.read_again()) == {"cell0"}
    assert len(ledger.read_again()["cell0"]) == 4


def test_a_read_that_cannot_be_entered_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint = ''"):
        Ledger(tmp_path / "ledger.jsonl").read(**KEY | {"checkpoint": ""})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Ledger(tmp_path / "file" / "ledger.jsonl").read(**KEY)
    assert Ledger(tmp_path / "none.jsonl").entries() == ()
