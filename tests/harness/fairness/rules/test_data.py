"""FAIR-01 and FAIR-02: the data are the published ones, and no class is in two splits."""

from dataclasses import replace

import numpy as np
import pytest

from harness.config import Choice
from harness.data import datasets
from harness.data.datasets import Dataset
from harness.fairness import rules
from harness.fairness.rules import data as data_rules


def unread(i):
    raise AssertionError("no rule reads an image")


def fake(name, counts):
    """A dataset of {split: (images, classes)} and its split."""
    split = np.repeat(list(counts), [images for images, _ in counts.values()])
    role = np.where(split == "test", "query", "").astype("<U7")
    role[np.flatnonzero(split == "test")[14_218:]] = "gallery"
    labels, first = [], 0
    for images, classes in counts.values():
        labels.append(first + np.arange(images) % classes)
        first += classes
    labels = np.concatenate(labels)
    names = tuple(str(number + 1) for number in range(labels.max() + 1))
    keys = tuple(map(str, range(len(labels))))
    raw = np.where(split == "validation", "train", split)
    dataset = Dataset(name, keys, labels, names, raw, read=unread, role=role if name == "inshop" else None)
    return dataset, split


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cub200", {"train": (5864, 100), "test": (5924, 100)}),
        ("cub200", {"train": (4700, 80), "validation": (1164, 20), "test": (5924, 100)}),
        ("cars196", {"train": (8054, 98), "test": (8131, 98)}),
        ("sop", {"train": (59551, 11318), "test": (60502, 11316)}),
        ("inshop", {"train": (25882, 3997), "test": (26830, 3985)}),
        ("glyphs", {"train": (10, 5), "test": (10, 5)}),
    ],
)
def test_the_published_sizes_pass(name, counts):
    assert rules.over_data(*fake(name, counts)) == ()


@pytest.mark.parametrize(
    ("name", "counts", "sentence"),
    [
        (
            "cars196",
            {"train": (8144, 196), "test": (8041, 196)},
            "FAIR-01 cars196: 8144/8041 images, expected 8054/8131. This is the classification split (same classes "
            "in train and test).",
        ),
        ("cub200", {"train": (5994, 100), "test": (5794, 100)}, "This is the classification split"),
        ("cub200", {"train": (3000, 100), "test": (3033, 100)}, "This is the edition of 2010"),
        ("cub200", {"train": (5864, 99), "test": (5924, 101)}, "FAIR-01 cub200: 99/101 classes, expected 100/100."),
        ("sop", {"train": (10, 5), "test": (10, 5)}, "FAIR-01 sop: 10/10 images, expected 59551/60502."),
    ],
)
def test_another_size_is_named(name, counts, sentence):
    dataset, split = fake(name, counts)
    (finding,) = rules.over_data(dataset, split)
    assert (finding.rule, finding.severity) == ("FAIR-01", "E")
    assert sentence in finding.sentence
    assert rules.over_data(replace(dataset, deviations=("another size",)), split) == ()


def benchmark(make_trial, **options):
    trial = make_trial()
    return trial.model_copy(update={"dataset": Choice(name="cub200", options=options)})


def test_records_of_another_size_are_errors_or_marked(make_trial, make_clean, finds):
    size = {"images": {"train": 5994, "test": 5794}, "classes": {"train": 100, "test": 100}, "distinct_classes": 200}
    assert finds(1, [make_clean(trial=benchmark(make_trial), data=size)]) == [
        (
            "E",
            "FAIR-01 cub200: 5994/5794 images, expected 5864/5924. This is the classification split (same classes in "
            "train and test).",
        )
    ]
    wanted = make_clean(trial=benchmark(make_trial, allow_nonstandard=True), data=size)
    (found,) = finds(1, [wanted])
    assert found[0] == "W"
    assert found[1].startswith("FAIR-01 cub200: not CUB-200-2011: 5994/5794 images, expected 5864/5924.")
    size["images"] = {"train": 5864, "test": 5924}
    assert finds(1, [make_clean(trial=benchmark(make_trial), data=size)]) == []


def test_two_copies_of_the_data_in_one_run(make_clean, finds):
    records = [make_clean(seed=seed, data={"index_fingerprint": "ab"[seed > 1] * 64}) for seed in range(3)]
    assert finds(1, records) == [
        ("E", f"FAIR-01 glyphs: 2 different copies of the data ({'a' * 12}: 2 records; {'b' * 12}: 1 record).")
    ]


def test_a_class_on_two_sides():
    dataset, split = fake("birds", {"train": (20, 5), "validation": (8, 4), "test": (20, 5)})
    labels = dataset.labels.copy()
    labels[split == "validation"] = [9, 10, 11, 8] * 2
    shared = Dataset("birds", dataset.keys, labels, dataset.class_names, split, read=unread)
    (finding,) = rules.over_data(shared, split)
    assert finding.severity == "E"
    assert finding.sentence == "FAIR-02 birds: 3 classes in both validation and test (10, 11, 12)."


def test_classes_that_do_not_add_up(make_clean, finds):
    assert finds(2, [make_clean(data={"distinct_classes": 7})]) == [
        ("E", "FAIR-02 glyphs: 3 classes in more than one split.")
    ]
    assert finds(2, [make_clean(data={"distinct_classes": None})]) == []


def test_other_pixels_under_the_same_names(make_clean, make_trial, finds):
    records = [make_clean(seed=seed, data={"content_fingerprint": "ab"[seed > 1] * 64}) for seed in range(3)]
    assert finds(1, records) == [
        (
            "E",
            f"FAIR-01 glyphs: 2 sets of pixels for the same image names ({'a' * 12}: 2 records; {'b' * 12}: 1 "
            "record).",
        )
    ]
    older = [make_clean(seed=3), records[0]]
    assert finds(1, older) == [], "older records do not tell"
    larger = make_trial(seed=4)
    larger = larger.model_copy(update={"images": larger.images.model_copy(update={"cache_side_px": 64})})
    other_size = make_clean(trial=larger, data={"content_fingerprint": "c" * 64})
    assert finds(1, [records[0], other_size]) == [], "other pixels of the same images"


def test_the_register_is_read_once_for_each_name(make_trial, make_clean, monkeypatch):
    asked, names = [], datasets.names
    monkeypatch.setattr(datasets, "names", lambda: asked.append(1) or names())
    data_rules._standard.cache_clear()
    record = make_clean(trial=benchmark(make_trial))
    assert [data_rules.unlike(record) for _ in range(3)] == ["not CUB-200-2011"] * 3
    assert len(asked) == 1
