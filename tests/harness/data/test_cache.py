"""Files that several processes build once, and what they remember."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.data.cache import CacheError, building, default_folder, remembered

ROOT = Path(__file__).parents[3]


def test_the_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "x"

    def fail():
        with building(path) as scratch:
            scratch.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with building(path):
        pass  # nothing written
    assert [file.name for file in path.parent.iterdir()] == [".x.lock"]
    with building(path) as scratch:
        scratch.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_one_builds_while_the_others_wait(tmp_path):
    path, built = tmp_path / "x", []

    def build():
        with building(path) as scratch:
            if not path.exists():
                built.append(1)
                scratch.write_text("x")

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".x.part").write_text("left behind")
    with building(tmp_path / "x") as scratch:
        assert not scratch.exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_without_permission_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    message = f"cannot write the cache in {tmp_path}: {os.strerror(number)}; free some space"
    with pytest.raises(CacheError, match=message), building(tmp_path / "x"):
        pytest.fail("nothing to build in")


def test_a_full_disk_is_named_and_other_errors_are_left_alone(tmp_path):
    with pytest.raises(CacheError, match="No space left on device"), building(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), building(tmp_path / "x"):
        (tmp_path / "source").read_bytes()


def test_the_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "metrix-bench"


def test_results_are_shared_with_other_processes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from harness.data.cache import remembered\n"
        "print(remembered(Path(sys.argv[1]), ['answer', {'of': 6}], lambda: int(sys.argv[2])))"
    )

    def ask(number) -> str:
        words = [sys.executable, "-c", code, str(tmp_path), str(number)]
        return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.strip()

    assert [ask(42), ask(43)] == ["42", "42"]
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text("4")
    assert ask(44) == "4"
    kept.write_text("{")
    assert [ask(45), ask(46)] == ["45", "45"]
    assert remembered(tmp_path, ["answer", {"of": 7}], lambda: 1) == 1
    assert len(list(tmp_path.rglob("*"))) == 3


def test_an_invalid_result_is_computed_again(tmp_path):
    found = iter([{"file": str(tmp_path / "a")}, {"file": str(tmp_path / "b")}])

    def ask() -> dict:
        return remembered(tmp_path / "cache", "file", lambda: next(found), lambda one: os.path.exists(one["file"]))

    (tmp_path / "a").touch()
    assert ask() == ask() == {"file": str(tmp_path / "a")}
    (tmp_path / "a").unlink()
    assert ask() == {"file": str(tmp_path / "b")}  # is not there either: not kept
    with pytest.raises(StopIteration):
        ask()


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path):
    (tmp_path / "file").touch()
    assert remembered(tmp_path / "file", "key", lambda: [1, 2]) == [1, 2]
