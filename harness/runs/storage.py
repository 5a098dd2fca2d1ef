"""Where a run is stored: in a folder or in a bucket.

A run is always read and written as files of a folder. A `Folder` (a disk, or a share that machines mount) is the run
itself. A `Bucket` has a working copy on each machine: files are pulled into it before they are read and pushed from
it after they are written, and files that are only in the copy do not count.
"""

from pathlib import Path

from harness.runs.bucket import Bucket
from harness.runs.errors import RunError
from harness.runs.folder import Folder

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")


def named(place: str | Path) -> str | Path:
    """Return a place as a Path, or as the text of a bucket's URL, whose slashes a Path would collapse.

    Raises RunError for a URL with credentials in it, which the message does not repeat, and for other schemes.
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
            f"{scheme}://…@{after} has credentials in it, which process lists and logs would show: name "
            f"{scheme}://bucket/prefix alone, and give them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or as a profile (AWS_PROFILE)"
        )
    if scheme not in SCHEMES:
        raise RunError(
            f"{scheme}:// is not a bucket; a run is in a folder or at {', '.join(SCHEMES)}://bucket/prefix"
        )
    return text


def of(place: str | Path, copy: Path | None = None) -> Folder | Bucket:
    """Return the storage of the run at `place`. `copy`: the working copy of a bucket, if not in the cache."""
    place = named(place)
    return Folder(place) if isinstance(place, Path) else Bucket(place, copy)
