"""Which numbers share a table, and which trials may join which records in one folder."""

from typing import Any

from harness.fairness.comparability import Entry, comparable_tables, conflicts, differing, distinguishing, place_of
from harness.fairness.rules._subjects import entry_of


def test_conflicts_name_the_setting_that_changed(make_trial, make_record):
    old = [make_record(make_trial(seed=seed)) for seed in (0, 1)]
    assert conflicts(old, [make_trial(seed=2), make_trial("multi_similarity")]) == []
    assert conflicts(old, [make_trial(seed=0, epochs=9)]) == ["training.epochs was 2 and is now 9 (2 records)"]
    (sentence,) = conflicts(old, [make_trial(seed=0, lr=0.1)])
    assert sentence.startswith("contrastive training was")
    assert conflicts(old, [make_trial(dataset="omniglot", epochs=9)]) == []


def entry(trial, record=None) -> Entry[Any]:
    if record is not None:
        return entry_of(record)
    return Entry(place_of(trial), trial.arm.label, trial.arm.at, trial.seed, trial.shared, False, None)


def seeds(table):
    return [(e.arm, e.seed) for e in table.entries]


def test_tables_hold_what_may_be_compared(make_trial, make_record):
    first, variant = make_trial(), make_trial("contrastive+input")
    longer = make_trial("triplet", epochs=9)
    entries = [entry(trial, make_record(trial)) for trial in (longer, first, variant)]
    large, small = comparable_tables(entries)
    assert seeds(large) == [("contrastive", 0), ("contrastive+input", 0)]
    assert seeds(small) == [("triplet", 0)]
    assert distinguishing(large, [large, small]) == (("training.epochs", 2),)
    assert differing(large.factors, small.factors) == ["training.epochs"]


def test_another_evaluator_data_or_place_makes_another_table(make_trial, make_record):
    trial = make_trial()
    record = make_record(trial, provenance={"evaluator": "a"})
    other_data = record.data.model_copy(update={"index_fingerprint": "0" * 64})
    records = [
        record,
        record.model_copy(update={"provenance": {"evaluator": "b"}}),
        record.model_copy(update={"data": other_data}),
        make_record(make_trial(dataset="omniglot")),
        make_record(make_trial(backbone="resnet18")),
    ]
    tables = comparable_tables([entry(record.trial, record) for record in records])
    assert [len(table.entries) for table in tables] == [1] * 5
    assert tables[0].place == ("glyphs", "resnet18")


def test_a_trial_without_a_record_joins_the_largest_table_that_accepts_its_settings(make_trial, make_record):
    finished = [make_record(make_trial(seed=seed), provenance={"evaluator": "a"}) for seed in (0, 1)]
    finished.append(make_record(make_trial(seed=2), provenance={"evaluator": "b"}))
    waiting, unlike = make_trial(seed=3), make_trial(seed=4, epochs=9)
    tables = comparable_tables([*(entry(r.trial, r) for r in finished), entry(waiting), entry(unlike)])
    assert [[seed for _, seed in seeds(table)] for table in tables] == [[0, 1, 3], [2], [4]]


def test_a_floor_joins_every_table_of_its_network_and_one_of_equal_training_is_preferred(make_trial, make_record):
    trained = [make_record(make_trial()), make_record(make_trial(epochs=9))]
    floor, other = make_record(make_trial("untrained")), make_record(make_trial("untrained", epochs=9))
    tables = comparable_tables([entry(r.trial, r) for r in (*trained, floor, other)])
    of_table = {t.factors["training.epochs"]: [e.of for e in t.entries if e.level == "floor"] for t in tables}
    assert of_table == {2: [floor], 9: [other]}
    (alone,) = comparable_tables([entry(floor.trial, floor)])
    assert seeds(alone) == [("untrained", 0)]
