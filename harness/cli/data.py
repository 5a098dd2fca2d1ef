"""Commands about data: doctor, prepare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cli.options import CACHE, DATA, FAILED, OK, add_command, option, whole
from harness.errors import UserError

SIDE_PX = 256  # what grids store unless they set it: `Images().stored_px`, which takes long to import


def add_commands(commands) -> None:
    """Add the commands of this file."""
    command = add_command(commands, doctor, "doctor", "check a copy of a dataset, and say what it lacks")
    _add_dataset(command)
    command.add_argument(
        "--thorough", action="store_true", help="find equal images by their pixels, not only equal files"
    )

    command = add_command(commands, prepare, "prepare", "decode the images of a dataset, once for all trials")
    _add_dataset(command)
    command.add_argument(
        "--side", type=whole(1), default=SIDE_PX, metavar="PX", help="shorter side (default: %(default)s)"
    )


def _add_dataset(command) -> None:
    command.add_argument("dataset", help="one of those that `list datasets` names")
    command.add_argument("--data", type=Path, help=DATA)
    command.add_argument("--cache", type=Path, help=CACHE)
    command.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        type=option,
        metavar="KEY=VALUE",
        help="such as resolution=high",
    )


def _given(dataset: str, data: Path | None, options: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the options of a dataset. Raise UserError for one given twice, and for a folder that is never read."""
    from harness.data import datasets

    keys = [key for key, _ in options]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--option {twice} is given twice; give it once")
    if data is not None and not datasets.describe(dataset).needs_data:
        raise UserError(f"--data {data}: {dataset} is embedded and reads no folder; leave it out")
    return dict(options)


def doctor(
    dataset: str, data: Path | None, cache: Path | None, options: Sequence[tuple[str, Any]], thorough: bool
) -> int:
    """Print what a copy of a dataset holds, what it should, and all that is wrong with it."""
    from harness.data.doctor import examine
    from harness.reports import terminal

    given = _given(dataset, data, options)
    with terminal.progress(f"looking at {dataset}") as progress:
        found = examine(dataset, data, cache, thorough=thorough, progress=progress, **given)
    if found.counts:
        columns = ("part", "images", "classes", *(("images expected", "classes expected") if found.expected else ()))
        parts = dict.fromkeys((*found.counts, *found.expected))
        rows = [(part, *found.counts.get(part, (0, 0)), *found.expected.get(part, ())) for part in parts]
        terminal.table(f"{found.name}: {found.title}", columns, rows)
        print(f"fingerprint {found.fingerprint}")
    for finding in found.findings:
        print(f"{finding.severity}  {finding.sentence}")
    for problem in found.unreadable:
        print(f"   {problem}")
    if found.sound:
        whole = found.expected and not found.findings
        print(f"{found.name}: " + (f"a standard copy of {found.title}" if whole else "ready to run"))
        return OK
    print(found.advice, end="\n" if found.advice else "")
    return FAILED


def prepare(
    dataset: str, data: Path | None, cache: Path | None, options: Sequence[tuple[str, Any]], side: int
) -> int:
    """Decode a dataset into the cache, so that no trial has to wait for it."""
    from harness.data import datasets
    from harness.data.cache import default_folder
    from harness.data.images import open_images
    from harness.reports import terminal

    loaded = datasets.load(dataset, data, cache, **_given(dataset, data, options))
    with terminal.progress(f"decoding {loaded.name}") as progress:
        images = open_images(loaded, side, cache or default_folder(), progress, announce=print)
    size = f"{images.path.stat().st_size / 1e9:.2f} GB"
    print(f"{len(images)} image{'s' * (len(images) != 1)} in {images.path}, {size}")
    return OK
