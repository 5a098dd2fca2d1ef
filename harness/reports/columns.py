"""The cells and the runs as flat lines, and what each of their columns means: CSV, Parquet and the schema agree."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.leaderboard.statistics import Interval, PairedDifference
from harness.leaderboard.tables import Block, Cell, Leaderboard, Row
from harness.runs.record import Record

HERE = "measured here"


@dataclass(frozen=True)
class Column:
    """A column: its type (text, integer, number, truth) and its meaning. Blank means unknown, never zero."""

    kind: str
    meaning: str


CELLS: dict[str, Column] = {
    "dataset": Column("text", "name of the dataset"),
    "backbone": Column("text", "name of the network"),
    "factors": Column("text", "what tells this table from others of the same dataset and network, name=value"),
    "arm": Column("text", "the loss, with +level where Metrix mixes; non-default settings in brackets"),
    "baseline": Column("text", "the arm that differences are taken to; blank for baselines and floors"),
    "level": Column("text", "baseline, embedding, feature, input, longer or floor; of published rows their own word"),
    "metric": Column("text", "R@K, MAP@R or R-Precision, of the test split"),
    "source": Column("text", f"`{HERE}`, or who published the number; published ones enter no statistic"),
    "state": Column("text", "ok, partial (some seeds are missing), fail, -- (not run) or n/a (no such Metrix form)"),
    "reason": Column("text", "why the state is not ok"),
    "findings": Column("text", "what the fairness rules and its trials say of the row, a sentence each"),
    "n": Column("integer", "training seeds in the mean"),
    "expected_n": Column("integer", "training seeds that should be there"),
    "mean": Column("number", "mean over seeds, a fraction in [0, 1]"),
    "half": Column("number", "half width of the interval over seeds"),
    "low": Column("number", "lower end of it"),
    "high": Column("number", "upper end of it"),
    "std": Column("number", "standard deviation over seeds, ddof = 1"),
    "interval": Column("text", "what the interval is: method, level, n, over what"),
    "bootstrap_low": Column("number", "lower end of the bootstrap interval over seeds, from 5"),
    "bootstrap_high": Column("number", "upper end of it"),
    "both_low": Column("number", "lower end of the bootstrap interval over seeds and test classes, from 5 seeds"),
    "both_high": Column("number", "upper end of it"),
    "classes_low": Column("number", "lower end of the bootstrap interval over test classes alone, seeds held"),
    "classes_high": Column("number", "upper end of it"),
    "difference": Column("number", "mean paired difference to the baseline over common seeds"),
    "difference_half": Column("number", "half width of its interval"),
    "difference_low": Column("number", "lower end of it"),
    "difference_high": Column("number", "upper end of it"),
    "difference_n": Column("integer", "seeds that the arm and its baseline share"),
    "difference_seeds": Column("text", "these seeds, with spaces"),
    "difference_p": Column("number", "two-sided p of the paired t-test, not corrected"),
    "difference_p_holm": Column("number", "the same after Holm over all variants of the column, from 5 seeds"),
    "difference_interval": Column("text", "what the difference's interval is"),
    "significant": Column("truth", "whether the corrected p is at most 0.05 (†)"),
    "best": Column("truth", "whether it is the highest mean of its column or not separable from it (bold)"),
    "second": Column("truth", "whether it is the second highest distinct mean of its column (underlined)"),
    "rank": Column("integer", "rank of the mean among the table's trained rows, 1 the best; equal means share it"),
    "rank_low": Column("integer", "best rank that the seeds do not exclude, 95 % for all rows together"),
    "rank_high": Column("integer", "worst rank that the seeds do not exclude"),
    "train_s": Column("number", "mean seconds inside training steps"),
    "relative_time": Column("number", "the same over that of the baseline"),
    "forward_passes_per_step": Column("number", "rows through the network ÷ batch size"),
    "relative_passes": Column("number", "the same over that of the baseline"),
    "peak_gb": Column("number", "mean peak memory"),
    "parameters": Column("integer", "parameters of the network"),
    "lr": Column("number", "learning rate"),
    "schedule": Column("text", "how it changes"),
    "values_by_seed": Column("text", "seed:value of every seed, with spaces"),
    "records": Column("text", "seed:id of the records behind the numbers, with spaces"),
}

RUNS: dict[str, Column] = {
    "record": Column("text", "id of the record: records/<id>.json in its run folder"),
    "dataset": Column("text", "name of the dataset"),
    "backbone": Column("text", "name of the network"),
    "weights": Column("text", "tag of the published weights, or name and digest of the file; blank: random ones"),
    "pretrained": Column("truth", "whether it began with trained weights, published or from a file"),
    "dim": Column("integer", "dimensions of the embedding"),
    "pooling": Column("text", "how the last feature map becomes a vector"),
    "side_px": Column("integer", "side of the images that the network sees"),
    "arm": Column("text", "the loss, with +level where Metrix mixes"),
    "baseline": Column("text", "the same loss without Metrix"),
    "level": Column("text", "baseline, embedding, feature, input, longer or floor"),
    "seed": Column("integer", "training seed"),
    "fold": Column("integer", "which part of the training classes validates, from 1; blank without cross-validation"),
    "folds": Column("integer", "how many parts there are"),
    "protocol": Column("text", "name of the protocol"),
    "protocol_version": Column("integer", "its version"),
    "evaluator": Column("text", "digest of the evaluator's sources"),
    "metric": Column("text", "R@K, MAP@R or R-Precision"),
    "value": Column("number", "test score, a fraction in [0, 1]"),
    "validation": Column("number", "validation score of the selected epoch"),
    "initial_validation": Column("number", "validation score before training, where the record has it"),
    "selected_epoch": Column("integer", "epoch whose checkpoint was tested"),
    "best_test_epoch": Column("number", "score of the best test epoch, where the protocol records it; chose nothing"),
    "epochs": Column("integer", "epochs of training"),
    "batch_size": Column("integer", "images of a batch"),
    "optimizer": Column("text", "optimiser"),
    "lr": Column("number", "learning rate"),
    "schedule": Column("text", "how it changes"),
    "weight_decay": Column("number", "weight decay"),
    "train_s": Column("number", "seconds inside training steps"),
    "wall_s": Column("number", "seconds from start to record"),
    "steps": Column("integer", "training steps"),
    "images_seen": Column("integer", "images through the network in training, mixed ones apart"),
    "forward_passes_per_step": Column("number", "rows through the network ÷ batch size"),
    "peak_gb": Column("number", "peak memory"),
    "parameters": Column("integer", "parameters of the network"),
    "device": Column("text", "what it ran on"),
    "revision": Column("text", "commit of the code"),
    "uncommitted": Column("text", "digest of changes to it"),
    "index_fingerprint": Column("text", "fingerprint of the dataset's index"),
    "split_fingerprint": Column("text", "fingerprint of the split"),
    "grid": Column("text", "the grid it belongs to"),
    "finished": Column("text", "when it finished, UTC"),
}


def cells(board: Leaderboard) -> Iterator[dict[str, Any]]:
    """One line a row and metric, ours and then, for each block, what others published."""
    for block in board.blocks:
        for row in block.rows:
            yield from _row(block, row)
        for theirs in block.published:
            for metric, value in theirs.values.items():
                about = {"dataset": block.dataset, "backbone": block.backbone, "arm": theirs.arm}
                yield {**about, "level": theirs.level, "metric": metric, "source": theirs.source, "mean": value}


def _row(block: Block, row: Row) -> Iterator[dict[str, Any]]:
    """One dict a metric of the block; without a score its numbers are left out."""
    about = {
        "dataset": block.dataset,
        "backbone": block.backbone,
        "factors": "; ".join(f"{name}={value}" for name, value in block.factors),
        "arm": row.arm,
        "baseline": row.loss if row.indent else None,
        "level": row.level,
        "source": HERE,
        "state": row.state,
        "reason": row.reason or None,
        "findings": " ".join(note.sentence for note in block.findings if note.of(row.arm)) or None,
        "expected_n": len(row.expected),
        "train_s": row.train_s,
        "relative_time": row.relative_time,
        "forward_passes_per_step": row.passes,
        "relative_passes": row.relative_passes,
        "peak_gb": row.peak_gb,
        "parameters": row.parameters,
        "lr": row.steps.get("lr"),
        "schedule": row.steps.get("schedule"),
        "records": " ".join(f"{record.trial.seed}:{record.id}" for record in row.parts) or None,
    }
    for metric in block.metrics:
        yield {**about, "metric": metric, "n": 0, **_numbers(row.cells.get(metric))}


def _numbers(cell: Cell | None) -> dict[str, Any]:
    """The numbers of one cell, by column."""
    if cell is None:
        return {}
    found = {
        "n": cell.n,
        "mean": cell.mean,
        "half": cell.half,
        **_ends("", cell.interval),
        "std": cell.interval.std if cell.n > 1 else None,
        "interval": cell.interval.method,
        **_ends("bootstrap_", cell.bootstrap),
        **_ends("both_", cell.both),
        **_ends("classes_", cell.classes),
        "best": cell.best,
        "second": cell.second,
        "significant": cell.significant,
        "values_by_seed": " ".join(f"{seed}:{value!r}" for seed, value in sorted(cell.by_seed.items())),
    }
    if cell.rank is not None:
        found |= {"rank": cell.rank.rank, "rank_low": cell.rank.low, "rank_high": cell.rank.high}
    if (paired := cell.paired) is not None:
        found |= {
            "difference": paired.mean,
            "difference_half": cell.difference_half,
            **_ends("difference_", paired),
            "difference_n": paired.n,
            "difference_seeds": " ".join(map(str, sorted(paired.seeds))),
            "difference_p": None if math.isnan(paired.p) else paired.p,
            "difference_p_holm": cell.adjusted_p,
            "difference_interval": paired.method,
        }
    return found


def _ends(name: str, interval: Interval | PairedDifference | None) -> dict[str, float]:
    if interval is None or math.isnan(interval.half):
        return {}
    return {f"{name}low": interval.low, f"{name}high": interval.high}


def runs(board: Leaderboard) -> Iterator[dict[str, Any]]:
    """One line a record and metric, every record once however many tables it stands in."""
    records = {record.id: record for block in board.blocks for row in block.rows for record in row.parts}
    for _, record in sorted(records.items()):
        about = _run(record)
        initial = next((epoch.validation for epoch in record.curve if epoch.epoch == 0), {})
        for metric, value in record.test.items():
            best = (record.best_test_epoch or {}).get(metric)
            scores = {"metric": metric, "value": value, "validation": record.validation.get(metric)}
            yield {**about, **scores, "initial_validation": initial.get(metric), "best_test_epoch": best}


def _run(record: Record) -> dict[str, Any]:
    trial, origin, cost = record.trial, record.provenance, record.cost
    return {
        "record": record.id,
        "dataset": trial.dataset.name,
        "backbone": trial.backbone.name,
        "weights": record.weights,
        "pretrained": bool(trial.backbone.pretrained),
        "dim": trial.model.dim,
        "pooling": trial.model.pooling,
        "side_px": trial.images.side_px,
        "arm": record.arm,
        "baseline": record.baseline,
        "level": record.level,
        "seed": trial.seed,
        "fold": trial.fold,
        "folds": trial.folds,
        "protocol": record.protocol.get("name"),
        "protocol_version": record.protocol.get("version"),
        "evaluator": origin.get("evaluator"),
        "selected_epoch": record.selected_epoch,
        **{name: getattr(trial.training, name) for name in ("epochs", "batch_size", "optimizer", "lr", "schedule")},
        "weight_decay": trial.training.weight_decay,
        **{name: getattr(cost, name) for name in ("train_s", "wall_s", "steps", "images_seen", "peak_gb")},
        "forward_passes_per_step": cost.forward_passes_per_step,
        "parameters": cost.parameters,
        "device": origin.get("device"),
        "revision": origin.get("revision"),
        "uncommitted": origin.get("uncommitted"),
        "index_fingerprint": record.data.index_fingerprint,
        "split_fingerprint": record.data.split_fingerprint,
        "grid": record.grid.get("name"),
        "finished": record.finished,
    }
