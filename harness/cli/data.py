"""Commands about data: doctor, prepare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cli.options import CACHE, DATA, DEVICE, FAILED, OK, WEIGHTS, add_command, option, whole
from harness.errors import UserError

SIDE_PX = 256  # the default of grids, `Images().stored_px`, which takes long to import


def add_commands(commands) -> None:
    """Add the commands of this file."""
    command = add_command(commands, doctor, "doctor", "check a copy of a dataset and report its problems")
    _add_dataset(command)
    command.add_argument(
        "--thorough", action="store_true", help="find duplicates by their pixels, not only equal files"
    )

    command = add_command(
        commands, prepare, "prepare", "decode the images of a dataset once, for all trials, and compute features"
    )
    _add_dataset(command, "?")
    command.add_argument(
        "--grid",
        metavar="GRID",
        help="prepare what this grid needs instead: images, and the features of frozen networks",
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS)
    command.add_argument("--device", help=DEVICE)
    command.add_argument(
        "--side",
        type=whole(1),
        default=SIDE_PX,
        metavar="PX",
        help="shorter side of decoded images (default: %(default)s)",
    )


def _add_dataset(command, number: str | None = None) -> None:
    command.add_argument("dataset", nargs=number, help="name of the dataset (see metrix-bench list datasets)")
    command.add_argument("--data", type=Path, metavar="FOLDER", help=DATA)
    command.add_argument("--cache", type=Path, metavar="FOLDER", help=CACHE)
    command.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        type=option,
        metavar="KEY=VALUE",
        help="set an option of the dataset, such as resolution=high",
    )


def _options(dataset: str, data: Path | None, options: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the options of a dataset. Raise UserError for one that is given twice, and for an unused folder."""
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
    """Print what a copy of a dataset contains, what it should contain, and all of its problems."""
    from harness.data.doctor import examine
    from harness.reports import terminal

    keywords = _options(dataset, data, options)
    with terminal.progress(f"checking {dataset}") as progress:
        copy = examine(dataset, data, cache, thorough=thorough, progress=progress, **keywords)
    if copy.counts:
        columns = ("split", "images", "classes", *(("images expected", "classes expected") if copy.expected else ()))
        splits = dict.fromkeys((*copy.counts, *copy.expected))
        rows = [(split, *copy.counts.get(split, (0, 0)), *copy.expected.get(split, ())) for split in splits]
        terminal.table(f"{copy.name}: {copy.title}", columns, rows)
        print(f"fingerprint {copy.fingerprint}")
    for finding in copy.findings:
        print(f"{finding.severity}  {finding.sentence}")
    for problem in copy.unreadable:
        print(f"   {problem}")
    if copy.sound:
        standard = copy.expected and not copy.findings
        print(f"{copy.name}: " + (f"a standard copy of {copy.title}" if standard else "ready to run"))
        return OK
    print(copy.advice, end="\n" if copy.advice else "")
    return FAILED


def prepare(
    dataset: str | None,
    data: Path | None,
    cache: Path | None,
    options: Sequence[tuple[str, Any]],
    side: int,
    grid: str | None,
    weights: Path | None,
    device: str | None,
) -> int:
    """Decode a dataset into the cache, and compute the features of a grid, so that no trial waits for them."""
    from harness.data import datasets
    from harness.data.cache import default_folder
    from harness.data.images import open_images
    from harness.reports import terminal

    if (dataset is None) == (grid is None):
        raise UserError("prepare needs the name of a dataset, or --grid with a grid, and not both")
    if grid is not None and options:
        raise UserError(f"--option {options[0][0]}: the options of a dataset are in the grid; leave it out")
    if grid is None and (weights is not None or device is not None):
        raise UserError("--weights and --device are for the features of a grid; add --grid, or leave them out")
    if grid is not None:
        return _prepare_grid(grid, data, cache, weights, device)
    assert dataset is not None
    loaded = datasets.load(dataset, data, cache, **_options(dataset, data, options))
    with terminal.progress(f"decoding {loaded.name}") as progress:
        images = open_images(loaded, side, cache or default_folder(), progress, announce=print)
    _print_size(len(images), "image", images.path)
    return OK


def _prepare_grid(grid: str, data: Path | None, cache: Path | None, weights: Path | None, device: str | None) -> int:
    from harness.cli.running import load_grid
    from harness.data.images import Originals
    from harness.launch.plan import make_plan
    from harness.reports import terminal
    from harness.training.features import Features
    from harness.training.pictures import Sources, images_of, open_dataset, pictures_of, same_pictures

    sources = Sources("", data, cache, device)
    for trial in same_pictures(make_plan(load_grid(grid, (), {}, weights), data, cache).trials):
        dataset = open_dataset(trial.dataset, data, cache)
        with terminal.progress(f"decoding {dataset.name}") as progress:
            images_of(trial, dataset, sources, print, progress)
        with terminal.progress(f"features of {dataset.name} from {trial.backbone.name}") as progress:
            pictures = pictures_of(trial, dataset, sources, print, progress)
        if not isinstance(pictures, Originals):
            what = "feature" if isinstance(pictures, Features) else "image"
            _print_size(len(pictures), what, pictures.path)
    return OK


def _print_size(count: int, what: str, path: Path) -> None:
    print(f"{count} {what}{'s' * (count != 1)} in {path}, {path.stat().st_size / 1e9:.2f} GB")
