"""Cars196 in the two layouts in which it goes round."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.harness.data.datasets.fixtures import fork, numbered, photograph

OPTIONS = {"allow_nonstandard": True}
BOX = {
    f"bbox_{corner}": np.array([[value]], np.uint16)
    for corner, value in (("x1", 3), ("y1", 2), ("x2", 30), ("y2", 28))
}


def write(folder: Path, scale: float = 0, photographs: bool = True) -> Path:
    """Write cars196/ with car_ims/, which may stay empty, and cars_annos.mat into `folder` and give `folder`."""
    home, rows = folder / "cars196", []
    for number, images in numbered("cars196", scale, (1, 99)):
        for i in range(images):
            path = f"car_ims/{len(rows) + 1:06}.jpg"
            if photographs:
                photograph(home / path, f"car {number}", i)
            rows.append({"relative_im_path": path, **BOX, "class": np.uint8(number), "test": np.uint8(i % 2)})
    fork(home / "car_ims", "000001.jpg")
    save(home / "cars_annos.mat", rows, names())
    return folder


def write_devkit(folder: Path, scale: float = 0) -> Path:
    """Write cars_train/, cars_test/ and devkit/ into `folder`, half of each class in each, and give `folder`."""
    rows = {"train": [], "test": []}
    for number, images in numbered("cars196", scale, (1, 99)):
        for i in range(images):
            part = ("train", "test")[i % 2]
            name = f"{len(rows[part]) + 1:05}.jpg"
            photograph(folder / f"cars_{part}" / name, f"car {number}", i)
            rows[part].append({**BOX, "class": np.uint8(number), "fname": name})
    save(folder / "devkit" / "cars_train_annos.mat", rows["train"])
    save(
        folder / "devkit" / "cars_test_annos.mat",
        [{k: v for k, v in r.items() if k != "class"} for r in rows["test"]],
    )
    save(folder / "devkit" / "cars_test_annos_withlabels.mat", rows["test"])
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cell(names())})
    (folder / "devkit" / "README.txt").write_text("This file gives documentation for the cars 196 dataset.\n")
    return folder


def names() -> list[str]:
    return [f"Maker Model {number} Sedan 2012" for number in range(1, 197)]


def cell(texts: list[str]) -> np.ndarray:
    return np.array([np.array(text) for text in texts] + [None], dtype=object)[:-1].reshape(1, -1)


def save(path: Path, rows: list[dict], class_names: list[str] | None = None) -> None:
    """Save a struct array `annotations` (1, n) and, where given, a cell array `class_names` (1, 196)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in rows[0]])
    for i, row in enumerate(rows):
        annotations[0, i] = tuple(row.values())
    extra = {"class_names": cell(class_names)} if class_names else {}
    savemat(path, {"annotations": annotations, **extra}, do_compression=True)
