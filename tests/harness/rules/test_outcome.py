"""FAIR-20, 22, 23: nothing is dropped, nothing broken passes as weak, everything can be traced."""

import pytest

from harness.record import Failure

CELL = "glyphs/test_resnet/contrastive"


@pytest.fixture
def failed(make_trial):
    def failed(seed=0, kind="out of memory", reason="CUDA out of memory", attempts=3):
        trial = make_trial(seed=seed)
        return Failure(
            id=trial.id, trial=trial, arm=trial.arm.label, kind=kind, reason=reason, attempts=attempts, finished=""
        )

    return failed


def test_failed_and_missing_cells(make_trial, make_clean, failed, said):
    planned = [make_trial(seed=seed) for seed in range(4)]
    failures = [failed(0), failed(1), failed(2, "error", "ValueError: no\nmore", 1)]
    assert said(20, [], failures, planned) == [
        ("W", f"FAIR-20 {CELL}: failed (ValueError: no), seed 2."),
        ("W", f"FAIR-20 {CELL}: failed 3x (out of memory), seed 0, 1."),
        ("W", f"FAIR-20 {CELL}: not run, seed 3."),
    ]
    assert said(20, [make_clean(seed=seed) for seed in range(4)], failures, planned) == [], "they have run since"


def spreads(record, values):
    """The record with these (std, rank) epoch by epoch."""
    epochs = [
        record.curve[0].model_copy(
            update={"epoch": e, "validation": {"MAP@R": e / 100}, "spread": {"embedding std": s, "effective rank": r}}
        )
        for e, (s, r) in enumerate(values, 1)
    ]
    return record.model_copy(update={"curve": tuple(epochs)})


def test_a_collapsed_embedding_is_named_from_the_epoch_on(make_clean, said):
    record = spreads(make_clean(), [(0.2, 9), (1e-9, 9), (0.2, 9), (3e-7, 9), (3e-7, 9)])
    assert said(22, [record]) == [
        ("W", f"FAIR-22 {CELL} seed 0: embedding std 3e-7 from epoch 4: collapsed."),
    ]
    assert said(22, [spreads(make_clean(), [(3e-7, 9), (0.2, 9)])]) == [], "it recovered"
    late = spreads(make_clean(), [(3e-7, 9), (3e-7, 9), (3e-7, 9)])
    start = late.curve[0].model_copy(update={"epoch": 0, "loss": None})
    late = late.model_copy(update={"curve": (start, *late.curve)})
    assert said(22, [late])[0][1].endswith("embedding std 3e-7 from epoch 1: collapsed."), "epoch 0 is no training"
    record = spreads(make_clean(), [(0.2, 9), (0.2, 1.2)])
    assert said(22, [record])[0][1].endswith("effective rank 1.20 from epoch 2: collapsed.")
    record = make_clean(test_spread={"embedding std": 1e-5, "effective rank": 8}, curve=())
    assert said(22, [record])[0][1].endswith("seed 0: embedding std 1e-5: collapsed.")


def test_scores_below_chance_or_no_numbers(make_clean, said):
    # 4 classes of 2 images: the query's one partner among 7 others.
    assert said(22, [make_clean(test={"R@1": 0.14})])[0][1].endswith("R@1 0.1400 below chance, 0.1429.")
    assert said(22, [make_clean(test={"R@1": 0.15})]) == []
    assert said(22, [make_clean(test={"R@1": 0.5, "MAP@R": float("nan")})])[0][1].endswith("MAP@R not finite.")
    assert said(22, [make_clean("untrained", test={"R@1": 0.0})]) == [], "a floor is not trained"


def test_a_diverged_trial(failed, said):
    reason = "the loss is nan at epoch 3, step 2; the last finite loss was 4.1"
    assert said(22, [], [failed(kind="diverged", reason=reason)]) == [
        ("W", f"FAIR-22 {CELL} seed 0: diverged: {reason}."),
    ]


@pytest.mark.parametrize(
    ("origin", "lacks"),
    [
        ({"revision": None}, "the revision of the code"),
        ({"packages": {}}, "packages"),
        ({"device": ""}, "device"),
        ({"driver": "unknown"}, "the driver's version"),
        ({"tested_weights": None}, "tested weights"),
        ({"initial_weights": None}, "initial weights"),
        ({"evaluator": None}, "evaluator"),
    ],
)
def test_gaps_in_the_provenance(origin, lacks, make_clean, said):
    assert said(23, [make_clean(origin=origin)]) == [("W", f"FAIR-23 {lacks} is not recorded in 1 record.")]


def test_keys_that_older_records_lack(make_clean, said):
    record = make_clean()
    origin = {k: v for k, v in record.provenance.items() if k not in ("driver", "uncommitted")}
    found = said(23, [record.model_copy(update={"provenance": origin})])
    assert [sentence for _, sentence in found] == [
        "FAIR-23 whether the code had uncommitted changes is not recorded in 1 record.",
        "FAIR-23 driver is not recorded in 1 record.",
    ]
    assert said(23, [make_clean(origin={"revision": None, "sources": "f" * 64})]) == [], "a copy without git"
    assert said(23, [make_clean("pixels", origin={"initial_weights": None})]) == [], "no network"


def test_two_states_of_the_code(make_clean, said):
    records = [make_clean(), make_clean(seed=1), make_clean(seed=2, origin={"uncommitted": "1234"})]
    assert [sentence for _, sentence in said(23, records)] == [
        "FAIR-23 records of 2 states of the code: aaaaaaaaaa (2), aaaaaaaaaa with changes 1234 (1).",
        "FAIR-23 1 record made with uncommitted changes, of which a digest is known.",
    ]
