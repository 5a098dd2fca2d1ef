"""A run without findings; every test changes one thing."""

import pytest

from harness.fairness import rules
from harness.fairness.ledger import Ledger
from harness.runs.record import Cost

PROVENANCE = {
    "revision": "a" * 40,
    "uncommitted": None,
    "packages": {"torch": "2.11"},
    "device": "a processor",
    "driver": None,
    "initial_weights": "b" * 64,
    "tested_epoch": 2,
    "evaluator": "d" * 64,
}


@pytest.fixture
def make_clean(make_trial, make_record):
    """Make a record without findings. `origin` changes its provenance, `data` its data, by key."""

    def make(arm="contrastive", seed=0, origin=(), data=(), passes=1.0, **changes):
        trial = changes.pop("trial", None) or make_trial(arm, seed, **changes.pop("training", {}))
        record = make_record(trial)
        floor = trial.arm.at == "floor"
        weights = {"tested_weights": f"weights of {trial.id}", "tested_epoch": None if floor else 2}
        content = {
            "test": {"R@1": 0.5, "R@2": 0.6, "MAP@R": 0.25, "R-Precision": 0.3},
            "provenance": {**PROVENANCE, **weights, **dict(origin)},
            "data": record.data.model_copy(update={"test_asked": 8, "distinct_classes": 10, **dict(data)}),
            "cost": Cost(train_s=2.0, wall_s=3.0, steps=40, images_seen=800, forward_passes_per_step=passes),
        }
        if floor:
            content |= {"curve": (), "selected_epoch": None, "cost": Cost(wall_s=1.0)}
        else:
            extent = {"embedding std": 0.2, "effective rank": 9.0}
            curve = tuple(epoch.model_copy(update={"spread": extent}) for epoch in record.curve)
            content |= {"curve": curve, "test_spread": extent}
        return record.model_copy(update={**content, **changes})

    return make


@pytest.fixture
def clean_run(make_clean):
    """Two arms and a floor over five seeds."""
    arms = ("contrastive", "contrastive+embedding", "untrained")
    return [make_clean(arm, seed) for arm in arms for seed in range(5)]


@pytest.fixture
def ledger_of(tmp_path):
    """The ledger in which every record's test read is entered once."""

    def ledger_of(records):
        ledger = Ledger(tmp_path / "ledger.jsonl")
        for r in records:
            cell = f"{r.trial.dataset.name}/{r.trial.backbone.name}/{r.arm}/s{r.trial.seed}"
            origin = r.provenance
            ledger.read(cell, origin["tested_weights"], r.data.split_fingerprint, origin["evaluator"])
        return ledger

    return ledger_of


@pytest.fixture
def finds():
    """Return what rule number `of` finds in records, as (severity, sentence)."""

    def finds(of, records, *others, **more):
        findings = rules.over_records(records, *others, **more)
        return [(f.severity, f.sentence) for f in findings if f.rule == f"FAIR-{of:02}"]

    return finds
