"""Where a run lies: a folder or a bucket, by the name that its user gives.

A run is always read and written as files of a folder. Where that folder is the run itself (`Folder`: a disk, a share
that machines mount), nothing more is to be done. A run in a bucket (`Bucket`) has a working copy on each machine:
what is read is pulled into it first, what was written is pushed from it, and what lies in the copy alone does not
count.
"""

from pathlib import Path

from harness.runs.bucket import Bucket
from harness.runs.errors import RunError
from harness.runs.folder import Folder

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")


def named(place: str | Path) -> str | Path:
    """A place as it was named: a Path, or the text of a bucket's URL, whose slashes a Path would eat.

    Raises RunError for a URL with credentials in it, which this message does not repeat, and for other schemes.
    """
    text = str(place)
    scheme, url, rest = text.partition("://")
    if isinstance(place, Path) or not url:
        return Path(place)
    if scheme == "file":
        return Path(rest)
    owner = rest.partition("?")[0].rpartition("@")[0]
    if (owner and owner != "anonymous") or ":" in rest.partition("/")[0].partition("?")[0]:
        after = rest.rpartition("@")[2].partition("?")[0] if owner else "…"
        raise RunError(
            f"{scheme}://…@{after} has credentials in it, which lists of processes and logs would show: name "
            f"{scheme}://bucket/prefix alone, and give them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or as a profile (AWS_PROFILE)"
        )
    if scheme not in SCHEMES:
        raise RunError(
            f"{scheme}:// is not a bucket; a run is in a folder or at {', '.join(SCHEMES)}://bucket/prefix"
        )
    return text


def of(place: str | Path, copy: Path | None = None) -> "Folder | Bucket":
    """The storage of a run at `place`; `copy`: where a bucket's working copy lies, if not in the cache."""
    place = named(place)
    return Folder(place) if isinstance(place, Path) else Bucket(place, copy)
