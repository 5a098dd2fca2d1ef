"""Commands that use a trained embedder: embed, export."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import DEVICE, FAILED, OK, add_command, place, warn, whole
from harness.cli.reading import RUN, existing
from harness.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TRIAL = "id of the trial, arm and seed such as contrastive-s0, or a unique part of the id"
WEIGHTS = "weights of a frozen backbone, if they are no longer where the trial found them"
BATCH = 256  # the default of `Trained.embed`, which takes long to import


def add_commands(commands) -> None:
    """Add the commands of this file."""
    command = add_command(commands, embed, "embed", "embed the images of any folder with a trained network")
    command.add_argument("run", type=place, help=f"{RUN}, in which the trial kept its weights (keep: weights)")
    command.add_argument("trial", help=TRIAL)
    command.add_argument("folder", type=Path, help="folder of the images, which may be in folders of it")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("embeddings.npz"),
        metavar="FILE",
        help=".npz or .parquet file (default: %(default)s)",
    )
    command.add_argument(
        "--neighbours",
        type=whole(1),
        metavar="K",
        help="also find the K nearest others of every image, as a table and a page next to FILE",
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS)
    command.add_argument("--device", help=DEVICE)
    command.add_argument(
        "--batch",
        type=whole(1),
        default=BATCH,
        metavar="N",
        help="images that go through the network at a time (default: %(default)s)",
    )

    command = add_command(commands, export, "export", "write a trained network for timm, and as ONNX")
    command.add_argument("run", type=place, help=f"{RUN}, in which the trial kept its weights (keep: weights)")
    command.add_argument("trial", help=TRIAL)
    command.add_argument("folder", type=Path, help="folder to write model.safetensors, model.json and model.onnx to")
    command.add_argument("--onnx", action="store_true", help="fail if the network cannot be written as ONNX")
    command.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS)


def embed(
    run: str | Path,
    trial: str,
    folder: Path,
    out: Path,
    neighbours: int | None,
    weights: Path | None,
    device: str | None,
    batch: int,
) -> int:
    """Write the embeddings of all images below a folder; return 1 if some of them cannot be read."""
    from harness.data.loose import find_images
    from harness.reports import terminal
    from harness.reports.embeddings import writer
    from harness.training.trained import load

    write, found = writer(out), find_images(folder)
    if neighbours is not None:
        _require_others(neighbours, len(found.ids))
    source = existing(run)
    embedder = load(source, trial, device, weights)
    problems: dict[int, str] = {}
    with terminal.progress(f"embedding {folder}") as progress:
        embeddings = embedder.embed(found.files, batch=batch, progress=progress, unreadable=problems.__setitem__)
    kept = [number for number in range(len(found.ids)) if number not in problems]
    unreadable = [*found.unreadable, *problems.values()]
    if not kept:
        raise UserError("\n  ".join([f"none of the {len(found.ids)} images in {folder} can be read:", *unreadable]))
    ids, files, embeddings = [found.ids[n] for n in kept], [found.files[n] for n in kept], embeddings[kept]
    write(out, ids, embeddings, {"run": str(source.place), **embedder.about})
    print(
        f"{len(ids)} image{'s' * (len(ids) != 1)} in {out}: {embeddings.shape[1]} dimensions, by {embedder.record.id}"
    )
    for ignored in found.passed_over:
        print(ignored)
    if unreadable:
        warn("\n  ".join([f"left out, because they cannot be read ({len(unreadable)}):", *unreadable]))
    if neighbours is not None:
        _require_others(neighbours, len(ids))
        _write_neighbours(out, embedder.record.id, ids, files, embeddings, neighbours)
    return FAILED if unreadable else OK


def _require_others(neighbours: int, images: int) -> None:
    if neighbours >= images:
        raise UserError(f"--neighbours {neighbours} of {images} images: each has at most {images - 1} others")


def _write_neighbours(
    out: Path, trial: str, ids: Sequence[str], files: Sequence[Path], embeddings: "np.ndarray", count: int
) -> None:
    """Write the nearest others of each image next to `out`, as a table and a page."""
    from harness.evaluation.neighbours import nearest
    from harness.reports.neighbours import write_page, write_table

    numbers, similarities = nearest(embeddings, count)
    table = write_table(out.with_suffix(".neighbours.csv"), ids, numbers, similarities)
    page = write_page(out.with_suffix(".neighbours.html"), trial, table.name, ids, files, numbers, similarities)
    print(f"written: {table}  {page}\nopen {page} in a browser")


def export(run: str | Path, trial: str, folder: Path, onnx: bool, weights: Path | None) -> int:
    """Write a trained network to a folder and print the lines that load it; return 1 if --onnx is not possible."""
    from harness.training.export import export
    from harness.training.trained import load

    written = export(load(existing(run), trial, "cpu", weights), folder)
    print("written: " + "  ".join(map(str, written.files)))
    print(f"In {folder}, with images prepared as model.json says:\n")
    print("\n".join(f"    {line}" for line in written.usage))
    if written.without_onnx:
        print()
        warn(f"no model.onnx: {written.without_onnx}")
    return FAILED if onnx and written.without_onnx else OK
