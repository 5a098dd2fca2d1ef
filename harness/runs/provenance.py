"""Where a number comes from: code revision, package versions, machine. No names, no paths, no secrets."""

import functools
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

TRAINS = (  # what decides the bits of a trained network and which epoch is chosen, beside the trial's settings
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
    """Revision of the code with a digest of uncommitted changes, versions of what computes, processor."""
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
    """The commit and, where files differ from it, a digest of the difference; from the sources without git."""
    try:
        _git("ls-files", "--error-unmatch", __file__)  # an installed copy may lie in another project's checkout
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
    """sha256 over the Python sources of baselines, metrix and harness as they are now, names included."""
    return _digest(("baselines", "metrix", "harness"))


@functools.cache
def training_versions() -> dict[str, str]:
    """What must stay the same during a training: the versions of its packages, and a digest of its own code.

    Reports, launching and the command line are not part of it.
    """
    packages = provenance()["packages"]
    return {**{name: packages[name] for name in TRAINS_WITH}, "the training code": _digest(TRAINS)}


def _digest(places: Sequence[str]) -> str:
    """sha256 over the Python sources at these places (files, or folders with all below), names included."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted((ROOT / place).rglob("*.py")) or [ROOT / place]:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout
