"""A wheel holds every module and every data file of the packages, and an installed copy finds them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness import grids
from harness.leaderboard import published

ROOT = Path(__file__).parent.parent
PACKAGES = ("baselines", "metrix", "harness")
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
ASK = """
import json, harness
from harness import grids
from harness.leaderboard import compose, published
from harness.reports.formats import web
page = web.render(compose.board_of([]))
counts = len(published.load()), len(published.entries()), len(page)
print(json.dumps([harness.__file__, sorted(grids.shipped()), *counts]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder with the unpacked wheel, built from a copy of this checkout: building leaves files behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(source / "dist" / done.stdout.split()[-1]) as wheel:
        wheel.extractall(target)
    return target


def test_every_file_of_the_packages_is_in_the_wheel(installed):
    def files(root):
        found = (path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*") if path.is_file())
        return {str(path) for path in found if "__pycache__" not in path.parts}

    assert files(installed) == files(ROOT)
    assert {f"{name}/py.typed" for name in PACKAGES} <= files(installed)
    assert {"harness/leaderboard/published/published.csv", "harness/leaderboard/published/published.bib"} <= files(
        installed
    )


def test_an_installed_copy_finds_its_grids_its_page_and_the_published_rows(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    where, names, rows, sources, page = json.loads(done.stdout)
    assert Path(where).is_relative_to(installed)
    assert names == sorted(grids.shipped())
    assert (rows, sources) == (len(published.load()), len(published.entries()))
    assert rows > 50
    assert page > 20_000
