"""What every test may rely on: empty caches, short waits, and where possible an S3 server and a small disk."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from harness.data import datasets
from harness.data.cache import default_folder
from tests import disks

ROOT = Path(__file__).parent.parent
_caches = tempfile.TemporaryDirectory(prefix="metrix-caches-")


def pytest_configure():
    """Let no test, and no process of one, find what an earlier run left: the caches of a session are its own."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):  # they would go before XDG_CACHE_HOME
        os.environ.pop(name, None)
    os.environ |= {"XDG_CACHE_HOME": _caches.name, "HYPOTHESIS_STORAGE_DIRECTORY": f"{_caches.name}/hypothesis"}


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    """Storage that stays full or away fails a test within seconds, not after the ten minutes of a real run."""
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "20")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """The address of an S3 server on this machine; it stands in an environment of its own (`make s3`)."""
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
    """The URL of an empty place in a bucket, with the environment that reaches it."""
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
    """A cache that holds the glyphs and nothing else: to draw them takes eight seconds."""
    datasets.load("glyphs", None, default_folder(), classes=24)
    (folder := tmp_path / "drawn").mkdir()
    for path in default_folder().glob("glyphs-*.npz"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many bytes in memory and returns its folder."""
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
