"""Files that several processes build once."""

import errno
import os
import threading

import pytest

from harness.cache import CacheError, building, default_folder


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


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".x.part").write_text("left behind")
    with building(tmp_path / "x") as scratch:
        assert not scratch.exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_without_permission_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    message = f"cannot write the cache in {tmp_path}: {os.strerror(number)}; make room"
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
