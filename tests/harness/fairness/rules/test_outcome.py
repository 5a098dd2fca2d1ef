"""FAIR-20, 22, 23, 26: nothing is dropped, no failed training passes as a weak result, everything can be traced."""

import pytest

from harness.runs.record import Failure

CELL = "glyphs/test_resnet/contrastive"


@pytest.fixture
def failed(make_trial):
    def failed(seed=0, kind="out of memory", reason="CUDA out of memory", attempts=3):
        trial = make_trial(seed=seed)
        return Failure(
            id=trial.id, trial=trial, arm=trial.arm.label, kind=kind, reason=reason, attempts=attempts, finished=""
        )

    return failed


def test_failed_and_missing_cells(make_trial, make_clean, failed, finds):
    planned = [make_trial(seed=seed) for seed in range(4)]
    failures = [failed(0), failed(1), failed(2, "error", "ValueError: no\nmore", 1)]
    assert finds(20, [], failures, planned) == [
        ("W", f"FAIR-20 {CELL}: failed (ValueError: no), seed 2."),
        ("W", f"FAIR-20 {CELL}: failed 3x (out of memory), seed 0, 1."),
        ("W", f"FAIR-20 {CELL}: not run, seed 3."),
    ]
    assert finds(20, [make_clean(seed=seed) for seed in range(4)], failures, planned) == [], "they have run since"


def spreads(record, values):
    """The record with these (std, rank) epoch by epoch."""
    epochs = [
        record.curve[0].model_copy(
            update={"epoch": e, "validation": {"MAP@R": e / 100}, "spread": {"embedding std": s, "effective rank": r}}
        )
        for e, (s, r) in enumerate(values, 1)
    ]
    return record.model_copy(update={"curve": tuple(epochs)})


def test_a_collapsed_embedding_is_named_with_its_first_epoch(make_clean, finds):
    record = spreads(make_clean(), [(0.2, 9), (1e-9, 9), (0.2, 9), (3e-7, 9), (3e-7, 9)])
    assert finds(22, [record]) == [
        ("W", f"FAIR-22 {CELL} seed 0: embedding std 3e-7 from epoch 4: collapsed."),
    ]
    assert finds(22, [spreads(make_clean(), [(3e-7, 9), (0.2, 9)])]) == [], "it recovered"
    late = spreads(make_clean(), [(3e-7, 9), (3e-7, 9), (3e-7, 9)])
    start = late.curve[0].model_copy(update={"epoch": 0, "loss": None})
    late = late.model_copy(update={"curve": (start, *late.curve)})
    assert finds(22, [late])[0][1].endswith("embedding std 3e-7 from epoch 1: collapsed."), "epoch 0 is no training"
    record = spreads(make_clean(), [(0.2, 9), (0.2, 1.2)])
    assert finds(22, [record])[0][1].endswith("effective rank 1.20 from epoch 2: collapsed.")
    record = make_clean(test_spread={"embedding std": 1e-5, "effective rank": 8}, curve=())
    assert finds(22, [record])[0][1].endswith("seed 0: embedding std 1e-5: collapsed.")


def test_scores_below_chance_or_no_numbers(make_clean, finds):
    # 4 classes of 2 images: the query's one partner among 7 others.
    assert finds(22, [make_clean(test={"R@1": 0.14})])[0][1].endswith("R@1 0.1400 below chance, 0.1429.")
    assert finds(22, [make_clean(test={"R@1": 0.15})]) == []
    assert finds(22, [make_clean(test={"R@1": 0.5, "MAP@R": float("nan")})])[0][1].endswith("MAP@R not finite.")
    assert finds(22, [make_clean("untrained", test={"R@1": 0.0})]) == [], "a floor is not trained"


def test_a_diverged_trial(failed, finds):
    reason = "the loss is nan at epoch 3, step 2; the last finite loss was 4.1"
    assert finds(22, [], [failed(kind="diverged", reason=reason)]) == [
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
def test_gaps_in_the_provenance(origin, lacks, make_clean, finds):
    assert finds(23, [make_clean(origin=origin)]) == [("W", f"FAIR-23 {lacks} is not recorded in 1 record.")]


def test_keys_that_older_records_lack(make_clean, finds):
    record = make_clean()
    origin = {k: v for k, v in record.provenance.items() if k not in ("driver", "uncommitted")}
    found = finds(23, [record.model_copy(update={"provenance": origin})])
    assert [sentence for _, sentence in found] == [
        "FAIR-23 whether the code had uncommitted changes is not recorded in 1 record.",
        "FAIR-23 driver is not recorded in 1 record.",
    ]
    assert finds(23, [make_clean(origin={"revision": None, "sources": "f" * 64})]) == [], "a copy without git"
    assert finds(23, [make_clean("pixels", origin={"initial_weights": None})]) == [], "no network"


def test_two_states_of_the_code(make_clean, finds):
    records = [make_clean(), make_clean(seed=1), make_clean(seed=2, origin={"uncommitted": "1234"})]
    assert [sentence for _, sentence in finds(23, records)] == [
        "FAIR-23 records of 2 states of the code: aaaaaaaaaa (2), aaaaaaaaaa with changes 1234 (1).",
        "FAIR-23 1 record made with uncommitted changes, of which a digest is known.",
    ]


@pytest.fixture
def scored(make_clean):
    """Records of an arm with these R@1 by seed; `validation` is that of epochs 0, 1, 2."""

    def scored(arm, scores, validation=(), **changes):
        made = [make_clean(arm, seed, test={"R@1": score}, **changes) for seed, score in scores.items()]
        if not validation:
            return made
        first = made[0].curve[0]
        curve = [first.model_copy(update={"epoch": e, "validation": {"MAP@R": v}}) for e, v in enumerate(validation)]
        return [record.model_copy(update={"curve": tuple(curve)}) for record in made]

    return scored


def test_a_row_below_the_untrained_network(scored, finds):
    untrained = scored("untrained", {0: 0.706, 1: 0.708})
    below = scored("contrastive", {0: 0.609, 1: 0.611})
    assert finds(26, below + untrained) == [("W", f"FAIR-26 {CELL}: R@1 61.0 is below the untrained network's 70.7.")]
    assert finds(26, scored("contrastive", {0: 0.8, 1: 0.61}) + untrained) == [
        ("W", f"FAIR-26 {CELL}: R@1 70.5 is below the untrained network's 70.7.")
    ]
    assert finds(26, scored("contrastive", {0: 0.706, 1: 0.708}) + untrained) == [], "equal is not below"
    assert finds(26, scored("contrastive", {0: 0.9, 1: 0.6}) + untrained) == [], "means are compared"
    assert finds(26, untrained + scored("pixels", {0: 0.1})) == [], "floors are not trained"


def test_the_seeds_that_both_have_are_compared(scored, finds):
    untrained = scored("untrained", {0: 0.7})
    some = scored("contrastive", {0: 0.6, 1: 0.9})
    assert finds(26, some + untrained) == [
        ("W", f"FAIR-26 {CELL}: R@1 60.0 is below the untrained network's 70.0 (seed 0).")
    ]
    others = scored("contrastive", {1: 0.6, 2: 0.65})
    assert finds(26, others + untrained) == [
        ("W", f"FAIR-26 {CELL}: R@1 62.5 is below the untrained network's 70.0.")
    ]


def test_the_start_of_another_network_is_not_compared(scored, finds, make_trial):
    below = scored("contrastive", {0: 0.6})
    other = make_trial("untrained", 0)
    wide = other.model_copy(update={"model": other.model.model_copy(update={"dim": 32})})
    assert finds(26, below + scored("untrained", {0: 0.7}, trial=wide)) == []
    trials = [make_trial(arm, 0) for arm in ("contrastive", "untrained")]
    trials = [t.model_copy(update={"backbone": t.backbone.model_copy(update={"pretrained": True})}) for t in trials]
    for weights, found in (("c" * 64, 0), ("d" * 64, 1)):
        own = scored("contrastive", {0: 0.6}, trial=trials[0], origin={"initial_weights": "d" * 64})
        start = scored("untrained", {0: 0.7}, trial=trials[1], origin={"initial_weights": weights})
        assert len(finds(26, own + start)) == found, "other weights are another start"
    longer = make_trial("untrained", 0, epochs=9)
    assert len(finds(26, below + scored("untrained", {0: 0.7}, trial=longer))) == 1, "it is not trained by anything"


def test_numbers_that_would_print_equal_get_more_digits(scored, finds):
    found = finds(26, scored("contrastive", {0: 0.60010}) + scored("untrained", {0: 0.60013}))
    assert found == [("W", f"FAIR-26 {CELL}: R@1 60.010 is below the untrained network's 60.013.")]


def test_a_row_below_its_own_first_validation(scored, finds):
    gained_nothing = scored("contrastive", {0: 0.6}, validation=(0.884, 0.8, 0.881))
    assert finds(26, gained_nothing) == [
        ("W", f"FAIR-26 {CELL}: validation MAP@R 88.1 at the chosen epoch 2, 88.4 before training.")
    ]
    early = scored("contrastive", {1: 0.6}, validation=(0.9, 0.861, 0.8), selected_epoch=1)
    assert finds(26, gained_nothing + early + scored("untrained", {0: 0.7, 1: 0.7})) == [
        (
            "W",
            f"FAIR-26 {CELL}: R@1 60.0 is below the untrained network's 70.0; validation MAP@R 87.1 at the chosen "
            "epochs (1 to 2), 89.2 before training.",
        )
    ]
    assert finds(26, scored("contrastive", {0: 0.6}, validation=(0.3, 0.4, 0.5))) == []
    older = scored("contrastive", {0: 0.6})
    assert finds(26, older) == [], "older records have no epoch 0"
