"""What a command imports: a list of names must not wait seconds for torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.data import SIDE_PX
from harness.config import Images

ROOT = Path(__file__).parents[3]
SLOW = {"torch", "timm", "torchvision", "faiss", "pandas", "scipy", "pyarrow", "ray", "matplotlib", "jinja2"}
TRACE = """
import json, sys
from harness.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("\\n" + json.dumps([code, sorted(sys.modules)]))
"""


def imported(*words, folder=ROOT):
    """The exit code of a command and the packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", TRACE, *words],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, {name.partition(".")[0] for name in modules}


def test_help_imports_nothing_but_yaml():
    code, packages = imported("--help")
    assert code == 0
    assert not packages & (SLOW | {"numpy", "pydantic", "rich", "PIL"})


@pytest.mark.parametrize("what", ["grids", "losses", "levels", "datasets"])
def test_a_list_imports_nothing_that_computes(what):
    code, packages = imported("list", what)
    assert code == 0
    assert not packages & SLOW


def test_published_numbers_import_nothing_that_computes():
    code, packages = imported("published", "cub200")
    assert code == 0
    assert not packages & SLOW


@pytest.mark.parametrize("command", ["status", "stop"])
def test_the_status_of_a_run_imports_nothing_that_computes(command, finished):
    code, packages = imported(command, "base", folder=finished)
    assert code == 0
    assert not packages & SLOW


def test_the_side_that_prepare_shows_is_that_of_a_grid():
    assert Images().stored_px == SIDE_PX
