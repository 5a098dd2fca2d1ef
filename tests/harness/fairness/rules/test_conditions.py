"""FAIR-07, 08, 25: equal budgets, equal factors, one evaluator."""

from harness.config import Model
from harness.fairness import rules
from harness.runs.record import Cost

PLACE = "glyphs/test_resnet"


def test_more_forward_passes_than_the_baseline(make_clean, finds):
    records = [make_clean(arm, seed) for arm in ("contrastive", "contrastive+embedding") for seed in (0, 1)]
    assert finds(7, records) == []
    records += [make_clean("contrastive+input", seed, passes=2.0) for seed in (0, 1)]
    assert finds(7, records) == [
        ("W", f"FAIR-07 {PLACE}/contrastive+input: used 2.0x the forward passes of its baseline.")
    ]


def test_a_baseline_that_trains_longer_is_marked(make_clean, finds):
    longer = make_clean("contrastive@1.5x", cost=Cost(steps=60, images_seen=1200, forward_passes_per_step=1.0))
    assert finds(7, [make_clean(), longer]) == [
        ("W", f"FAIR-07 {PLACE}/contrastive@1.5x: used 1.5x the forward passes of its baseline.")
    ]


def test_other_steps_than_the_other_arms(make_clean, finds):
    records = [make_clean(arm) for arm in ("contrastive", "proxy_anchor")]
    records.append(make_clean("multi_similarity", cost=Cost(steps=80, images_seen=1600, forward_passes_per_step=1)))
    assert finds(7, records) == [
        ("W", f"FAIR-07 {PLACE}/multi_similarity: trained 80 steps on 1600 images, others 40 on 800.")
    ]


def test_two_devices(make_clean, finds):
    records = [make_clean(seed=seed, origin={"device": name}) for seed, name in enumerate(("H100", "T4"))]
    assert finds(7, records) == [
        ("W", f"FAIR-07 {PLACE}: trained on H100, T4: training times compare devices too."),
    ]


def test_a_shared_factor_that_differs(make_trial, make_clean, finds):
    pooled = make_trial(seed=4).model_copy(update={"model": Model(dim=16, pooling="avg+max")})
    records = [make_clean(seed=0), make_clean(seed=1), make_clean(trial=pooled)]
    assert finds(8, records) == [
        ("W", f"FAIR-08 {PLACE}: 1 record with model.pooling = avg+max, others avg: moved to their own table."),
    ]
    assert finds(8, [make_clean(), make_clean("untrained", training={"epochs": 7})]) == [], "a floor is not trained"


def test_batch_norm_that_saw_chunks(make_clean, finds):
    record = make_clean(origin={"batch_norm_rows": 5, "chunk_rows": 5})
    assert finds(8, [record, make_clean(seed=1, origin={"batch_norm_rows": None, "chunk_rows": 5})]) == [
        ("W", f"FAIR-08 {PLACE}/contrastive seed 0: BatchNorm saw chunks of 5 rows, not the batch of 20.")
    ]


def test_rows_forced_into_one_table(make_trial, make_clean):
    pooled = make_trial(seed=4).model_copy(update={"model": Model(dim=16, pooling="avg+max")})
    records = (make_clean(seed=0), make_clean(seed=1), make_clean(trial=pooled))
    (finding,) = rules.over_tables([rules.Table("table 1", records=records)])
    assert (finding.severity, finding.records) == ("E", (records[2].id,))
    assert finding.sentence == (
        "FAIR-08 table 1: 1 row with model.pooling = avg+max, others avg, forced into one table."
    )


def test_a_variant_with_its_own_learning_rate(make_trial, make_clean, finds):
    records = [make_clean(), make_clean("contrastive+embedding", training={"lr": 0.01})]
    assert finds(8, records) == [("W", f"FAIR-08 {PLACE}/contrastive+embedding: lr = 0.01, its baseline 0.001.")]
    tuned = [record.trial.model_copy(update={"protocol": "tuned"}) for record in records]
    assert finds(8, [make_clean(trial=trial, protocol={"name": "tuned", "version": 1}) for trial in tuned]) == []
    assert finds(8, [make_clean(), make_clean("proxy_anchor", training={"lr": 0.01})]) == [], "another loss may"


def test_arms_with_other_initial_weights_and_repeated_seeds(make_clean, finds):
    records = [make_clean(), make_clean("proxy_anchor"), make_clean("nca", origin={"initial_weights": "other"})]
    assert finds(8, records) == [("W", f"FAIR-08 {PLACE}: initial weights differ between arms of seed 0 (nca).")]
    again = make_clean(training={"lr": 0.01})
    assert finds(8, [make_clean(), again]) == [("W", f"FAIR-08 {again.id} repeats an arm and seed of its table.")]


def test_one_evaluator_and_one_protocol_in_a_table(make_clean):
    records = (make_clean(), make_clean(seed=1), make_clean(seed=2, protocol={"name": "fair", "version": 2}))
    found = [f for f in rules.over_tables([rules.Table("table 1", records=records)]) if f.rule == "FAIR-25"]
    assert [(f.severity, f.sentence) for f in found] == [
        ("E", "FAIR-25 table 1: 2 protocols in one table: fair version 1 (2), fair version 2 (1).")
    ]
    records = (make_clean(), make_clean(seed=1), make_clean(seed=2, origin={"evaluator": "e" * 64}))
    found = [f for f in rules.over_tables([rules.Table("table 1", records=records)]) if f.rule == "FAIR-25"]
    assert found[0].sentence.endswith(f"2 evaluators in one table: {'d' * 12} (2), {'e' * 12} (1).")
    assert found[0].records == (records[2].id,)


def test_records_of_another_split_of_the_same_data_are_named(make_clean, finds):
    records = [make_clean(seed=seed, data={"split_fingerprint": "ab"[seed > 1] * 64}) for seed in range(3)]
    (found,) = finds(8, records)
    assert found[1].endswith(
        f"1 record with data.split_fingerprint = {'b' * 12}, others {'a' * 12}: moved to their own table."
    )
