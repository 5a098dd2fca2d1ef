"""A manifest with all three splits and roles."""

from pathlib import Path

from tests.harness.data.datasets.sources.folder import image


def write(folder: Path) -> Path:
    lines = ["path,label,split,role"]
    labels = {"ant": "train", "bee": "train", "cat": "validation", "cow": "validation", "dog": "test", "elk": "test"}
    for label, split in labels.items():
        for number, role in enumerate(("query", "gallery", "gallery")):
            image(folder / "images" / label / f"{number}.png")
            lines.append(f"images/{label}/{number}.png,{label},{split},{role if split == 'test' else ''}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder
