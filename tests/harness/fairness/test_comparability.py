"""Which trials may join which records in one folder."""

from harness.fairness.comparability import conflicts


def test_conflicts_name_the_setting_that_changed(make_trial, make_record):
    old = [make_record(make_trial(seed=seed)) for seed in (0, 1)]
    assert conflicts(old, [make_trial(seed=2), make_trial("multi_similarity")]) == []
    assert conflicts(old, [make_trial(seed=0, epochs=9)]) == ["training.epochs was 2 and is now 9 (2 records)"]
    (sentence,) = conflicts(old, [make_trial(seed=0, lr=0.1)])
    assert sentence.startswith("contrastive training was")
    assert conflicts(old, [make_trial(dataset="omniglot", epochs=9)]) == []
