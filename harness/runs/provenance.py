"""The provenance of a number: code revision, package versions, machine. No names, no paths, no secrets."""

import functools
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

TRAINS = (  # besides the settings, this code determines the trained network bit for bit, and the chosen epoch
    "baselines",
    "metrix",
    "harness/streams.py",
    "harness/data",
    "harness/evaluation",
    "harness/training",
    "harness/fairness/protocols.py",
)
TRAINS_WITH = ("torch", "torchvision", "timm", "numpy", "pillow")
ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "torchvision", "timm", "ray", "faiss-cpu", "numpy", "scipy", "pillow", "metrix-bench")


@functools.cache
def provenance() -> dict[str, Any]:
    """Return the revision of the code, a digest of uncommitted changes, versions of packages, and the processor."""
    return {
        **_revision(),
        "packages": _versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _revision() -> dict[str, Any]:
    """Return the commit and a digest of the changes to it; without git, a digest of the sources."""
    try:
        _git("ls-files", "--error-unmatch", __file__)  # an installed copy may be inside another project's checkout
        commit = _git("rev-parse", "HEAD").decode().strip()
        changes = _git("diff", "HEAD", "--", "baselines", "metrix", "harness")
        changes += b"".join(
            (ROOT / name).read_bytes()
            for name in _git("ls-files", "-o", "--exclude-standard", "--", "baselines", "metrix", "harness")
            .decode()
            .splitlines()
        )
    except (OSError, subprocess.CalledProcessError):
        sources = sorted(path for part in ("baselines", "metrix", "harness") for path in (ROOT / part).rglob("*.py"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
        return {"revision": None, "sources": digest}
    return {"revision": commit, "uncommitted": hashlib.sha256(changes).hexdigest()[:16] if changes else None}


def code_digest() -> str:
    """Return the sha256 of the Python sources of baselines, metrix and harness, names included, as they are now."""
    return _digest(("baselines", "metrix", "harness"))


@functools.cache
def training_versions() -> dict[str, str]:
    """Return what must not change during a training: versions of packages, and a digest of the training code.

    Reports, launching and the command line are not part of it.
    """
    packages = provenance()["packages"]
    return {**{name: packages[name] for name in TRAINS_WITH}, "the training code": _digest(TRAINS)}


def _digest(places: Sequence[str]) -> str:
    """Return the sha256 of the Python sources in these files and folders, names included."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted((ROOT / place).rglob("*.py")) or [ROOT / place]:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout
