"""What every test can use: empty caches, short waits and, where possible, an S3 server and a small disk."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import hypothesis
import pytest

from harness.data import datasets
from harness.data.cache import default_folder
from tests import disks

ROOT = Path(__file__).parent.parent
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
hypothesis.settings.load_profile("untimed")
LONGEST = ("test_end_to_end.py", "test_gpu.py", "test_soak.py", "test_readme.py")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Hide the caches of earlier runs from tests and their processes: each session has its own.

    The workers of a parallel session inherit them, so that the glyphs are drawn once.
    """
    if hasattr(config, "workerinput"):
        return
    caches = tempfile.TemporaryDirectory(prefix="metrix-caches-")
    config.add_cleanup(caches.cleanup)
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):  # they take precedence over XDG_CACHE_HOME
        os.environ.pop(name, None)
    os.environ |= {"XDG_CACHE_HOME": caches.name, "HYPOTHESIS_STORAGE_DIRECTORY": f"{caches.name}/hypothesis"}


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that two workers end at about the same time."""
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    """Let storage that stays full or unavailable fail a test in seconds, not after the ten minutes of a real run."""
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "20")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """Return the address of an S3 server on this machine; it has a separate environment (`make s3`)."""
    program = shutil.which("moto_server", path=f"{ROOT / 'build/s3/bin'}:{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip("there is no S3 server to test with: make s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=file, stderr=file)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/data.json").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(f"the S3 server does not answer: {log.read_text()}")
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_server, tmp_path, monkeypatch):
    """Return the URL of an empty place in a bucket, and set the environment that reaches it."""
    from pyarrow import fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "no-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{s3_server}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    fs.S3FileSystem(endpoint_override=s3_server, scheme="http", allow_bucket_creation=True).create_dir("metrix-tests")
    return f"s3://metrix-tests/{tmp_path.name}"


@pytest.fixture
def drawn(tmp_path):
    """Return a cache that holds only the glyphs: drawing them takes eight seconds."""
    datasets.load("glyphs", None, default_folder(), classes=24)
    (folder := tmp_path / "drawn").mkdir()
    for path in default_folder().glob("glyphs-*.npz"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of a given size (bytes) in memory and returns its folder."""
    mounted = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        if (reason := disks.mount(folder, size)) is not None:
            pytest.skip(reason)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        disks.unmount(folder)
