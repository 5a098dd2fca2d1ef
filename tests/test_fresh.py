"""Tests see what a fresh machine has, and so does a command in `.ci/fresh`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data.cache import default_folder
from tests.harness.runs import test_bucket

ROOT = Path(__file__).parent.parent


def test_no_test_reads_or_writes_the_caches_of_the_user():
    mine = Path(os.environ["XDG_CACHE_HOME"])
    assert mine.name.startswith("metrix-caches-")
    assert default_folder() == test_bucket.CACHE == mine / "metrix-bench"
    assert not {"HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"} & os.environ.keys()
    assert Path(os.environ["HYPOTHESIS_STORAGE_DIRECTORY"]).parent == mine


LOOK = """
import os, sys, tempfile
from pathlib import Path
from harness.data.cache import default_folder
names = [name for place in (Path.home(), tempfile.gettempdir()) for name in os.listdir(place)]
print(*sorted(names), os.getcwd(), default_folder().exists(), Path(sys.argv[1]).exists(), sep="\\n")
sys.exit(3)
"""


@pytest.fixture
def look(tmp_path):
    """Return what a command sees in `.ci/fresh`, as lines, after another one left the file `left` and used caches."""
    (left := tmp_path / "left").touch()
    (tmp_path / "cache/metrix-bench").mkdir(parents=True)

    def run(path: str) -> list[str]:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": path}
        words = [ROOT / ".ci/fresh", sys.executable, "-c", LOOK, left]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 3
        return done.stdout.split()

    return run


def test_other_runs_are_invisible_in_a_namespace(look):
    if subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.PIPE).returncode:
        pytest.skip("no mount namespace is permitted here")
    *names, folder, cached, left = look(os.environ["PATH"])
    assert (folder, cached, left) == (str(ROOT), "False", "False")
    assert set(names) <= {"home", *(path.name for path in Path("/tmp").glob("*") if ROOT.is_relative_to(path))}


def test_home_and_caches_are_empty_where_no_namespace_is_permitted(look, tmp_path):
    (refuses := tmp_path / "unshare").write_text("#!/bin/sh\nexit 1\n")
    refuses.chmod(0o755)
    assert look(f"{tmp_path}:{os.environ['PATH']}") == [str(ROOT), "False", "True"]
