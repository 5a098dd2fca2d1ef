"""Time of all fairness rules over 10,000 records of 60 epochs, as objects and as a run folder read from disk."""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

from harness.audit import as_table, audit
from harness.config import Arm, Backbone, Choice, Images, Level, Model, Training, Trial
from harness.fairness import rules
from harness.fairness.ledger import Entry, Ledger
from harness.leaderboard import compose
from harness.runs.record import Cost, Data, Epoch, Record
from harness.runs.run import Run

AIM_S = 10.0
DATASETS = ("cub200", "cars196", "sop", "inshop")
BACKBONES = ("resnet18", "resnet50", "vit_small", "convnext_tiny", "mobilenetv3")
LEVELS = (None, *(Level(at=at) for at in ("embedding", "feature", "input")))
MARGINS = [round(0.02 * i, 2) for i in range(1, 26)]  # as many arms without Metrix
SEEDS = range(5)


def main() -> None:
    """Print the seconds that the rules take, and the slowest of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    records = list(itertools.islice(_records(options.epochs), options.records))
    print(f"all rules over {len(records):,} records of {options.epochs} epochs, one thread (aim: under {AIM_S:g} s)")
    with tempfile.TemporaryDirectory() as folder:
        run = _folder(Path(folder), records)
        planned = [record.trial for record in records]
        ledger = Ledger(run.ledger)
        began = time.perf_counter()
        found = rules.over_records(records, (), planned, ledger)
        over_records = time.perf_counter() - began
        blocks = compose.board_of(records, planned=planned).blocks
        printed = [as_table(block, {record.id: record for record in records}) for block in blocks]
        began = time.perf_counter()
        rules.over_tables(printed)
        over_tables = time.perf_counter() - began
        total = over_records + over_tables
        verdict = "reached" if total < AIM_S else "MISSED"
        print(f"  rules          {total:6.2f} s   (records {over_records:.2f}, tables {over_tables:.2f})   {verdict}")
        began = time.perf_counter()
        run.records()
        print(f"  reading        {time.perf_counter() - began:6.2f} s")
        began = time.perf_counter()
        audit(run)
        print(f"  whole audit    {time.perf_counter() - began:6.2f} s   (reading, leaderboard, rules, evaluator)")
        print(f"  findings       {len(found):6d}")


def _records(epochs: int):
    """Records of a full grid, without fault but for the sizes of their data."""
    curve = tuple(
        Epoch(
            epoch=e,
            loss=1 / e,
            lr=1e-4,
            validation={"R@1": e / 100, "R@2": e / 90, "MAP@R": e / 200, "R-Precision": e / 150},
            train_s=60.0,
            validation_s=1.0,
            spread={"embedding std": 0.04, "effective rank": 200.0},
        )
        for e in range(1, epochs + 1)
    )
    model, images, training = Model(), Images(), Training(epochs=epochs)
    cost = Cost(train_s=60.0 * epochs, steps=100 * epochs, images_seen=10_000 * epochs, forward_passes_per_step=1.0)
    for dataset, backbone, seed, margin, level in itertools.product(DATASETS, BACKBONES, SEEDS, MARGINS, LEVELS):
        trial = Trial(
            dataset=Choice(name=dataset),
            backbone=Backbone(name=backbone),
            model=model,
            images=images,
            training=training,
            arm=Arm.of("contrastive", {"margin": margin}, level),
            seed=seed,
        )
        score = 0.4 + margin / 5 + seed / 1000
        yield Record(
            id=trial.id,
            trial=trial,
            arm=trial.arm.label,
            level=trial.arm.at,
            baseline=trial.arm.baseline,
            grid={"name": "large", "version": 1},
            protocol={"name": "fair", "version": 1},
            selected_epoch=epochs,
            validation=curve[-1].validation,
            test={"R@1": score, "R@2": score + 0.1, "MAP@R": score / 3, "R-Precision": score / 2},
            curve=curve,
            cost=cost,
            data=Data(
                index_fingerprint="f" * 64,
                split_fingerprint="e" * 64,
                images={"train": 80, "validation": 20, "test": 100},
                classes={"train": 8, "validation": 2, "test": 10},
                test_queries=100,
                test_excluded=0,
                test_asked=100,
                distinct_classes=20,
            ),
            provenance={
                "revision": "a" * 40,
                "uncommitted": None,
                "packages": {"torch": "2"},
                "device": "a GPU",
                "driver": "1.0",
                "weights": "tag",
                "initial_weights": str(seed),
                "tested_weights": trial.id,
                "tested_epoch": epochs,
                "evaluator": "d" * 64,
            },
            finished="2026-01-01T00:00:00Z",
        )


def _folder(folder: Path, records: list[Record]) -> Run:
    """A run folder of the records and their test reads, written plainly: nothing here survives a crash."""
    run = Run(folder)
    (folder / "records").mkdir()
    for record in records:
        run.record_path(record.trial).write_text(record.model_dump_json())
    lines = []
    for record in records:
        cell = "/".join((*record.trial.cell, f"s{record.trial.seed}"))
        entry = Entry(cell, record.id, record.data.split_fingerprint, "d" * 64, record.finished)
        lines.append(json.dumps(vars(entry)))
    run.ledger.write_text("\n".join(lines) + "\n")
    return run


if __name__ == "__main__":
    main()
