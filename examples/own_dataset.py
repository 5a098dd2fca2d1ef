"""Your own images from a CSV file, trained with and without Metrix.

    python examples/own_dataset.py photos/labels.csv --out results/runs/mine

`labels.csv` has two columns, `path` (relative to the file's folder) and `label`. The script writes `manifest.csv`
beside it, which adds the column `split`: half of the classes are for training, the others for testing. Validation
classes are split off from the training classes later, in the same way for every dataset.
"""

import argparse
import csv
from pathlib import Path

import harness

GRID = """
name: own
datasets: [manifest]
backbones: [{name: test_resnet, stage: layer3}]  # tiny; for real work {name: resnet50.tv_in1k, pretrained: true}
losses: [contrastive]
levels: [baseline, embedding]
floors: []
seeds: [0]
model: {dim: 64}
images: {side_px: 64}
training: {epochs: 5, batch_size: 20, examples_per_class: 5, lr: 1e-3}
"""


def write_manifest(labels: Path) -> Path:
    """Write `manifest.csv` beside a CSV file of paths and labels, and return its path."""
    with labels.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    training = set(classes[: len(classes) // 2])
    manifest = labels.with_name("manifest.csv")
    with manifest.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "label", "split"])
        lines.writerows([r["path"], r["label"], "train" if r["label"] in training else "test"] for r in rows)
    return manifest


def main() -> None:
    """Write the manifest, run the two arms in this process, and print their scores."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("labels", type=Path, help="CSV file with the columns path and label")
    options.add_argument("--out", type=Path, default=Path("results/runs/own"), help="run folder")
    options.add_argument("--set", nargs="*", default=[], help="other settings, such as epochs=20 dim=512")
    given = options.parse_args()

    manifest = write_manifest(given.labels)
    given.out.mkdir(parents=True, exist_ok=True)
    grid = given.out / "grid.yaml"
    grid.write_text(GRID, encoding="utf-8")
    for trial in harness.Grid.load(grid, given.set).trials():
        record = harness.run_trial(trial, given.out, data=manifest)
        print(f"{record.arm:24}", "  ".join(f"{metric} {value:.3f}" for metric, value in record.test.items()))
    print(f"Tables: metrix-bench report {given.out}")


if __name__ == "__main__":
    main()
