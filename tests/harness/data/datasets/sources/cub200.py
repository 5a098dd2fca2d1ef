"""CUB_200_2011 as its archive unpacks."""

from pathlib import Path

from tests.harness.data.datasets.fixtures import fork, numbered, photograph

OPTIONS = {"allow_nonstandard": True}


def write(folder: Path, scale: float = 0, photographs: bool = True) -> Path:
    """Write CUB_200_2011/, or its lists and class folders alone, into `folder` and give `folder`."""
    home, paths, numbers = folder / "CUB_200_2011", [], []
    for number, images in numbered("cub200", scale, (1, 101)):
        name = f"Bird_{number}"
        fork(home / "images", f"{number:03}.{name}")
        for i in range(images):
            paths.append(f"{number:03}.{name}/{name}_{i:04}_{1000 * number + i}.jpg")
            numbers.append(number)
            if photographs:
                photograph(home / "images" / paths[-1], name, i)
        fork(home / "images" / f"{number:03}.{name}", Path(paths[-1]).name)
    (home / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    (home / "image_class_labels.txt").write_text("".join(f"{i} {number}\n" for i, number in enumerate(numbers, 1)))
    (home / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i, _ in enumerate(paths, 1)))
    names = dict.fromkeys(path.partition("/")[0] for path in paths)
    (home / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (home / "README").write_text("The Caltech-UCSD Birds-200-2011 Dataset\n")
    fork(home, "images.txt")
    return folder
