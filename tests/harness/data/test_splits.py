"""Which classes are held out, by hand: sha256 of "val-1" and "test-1" with a letter begin with

        a     b     c     d     e     f     g     h     i     j
val-1   8fe0  938f  dffd  d1f6  ad69  e04e  f136  51fd  d40e  6538
test-1  96bd  2492  8be1  3c2d  859f  2171  eaae  d68b  f3d3  c762
"""

import numpy as np
import pytest
from PIL import Image

from harness.data.datasets import Dataset, load
from harness.data.splits import fair_validation, fold_validation, hash_order, held_out, parts

LETTERS = "abcdefghij"


def letters(indices):
    return "".join(LETTERS[i] for i in indices)


def test_hash_order():
    assert letters(hash_order(LETTERS, "val-1")) == "hjabedicfg"
    assert letters(hash_order(LETTERS, "test-1")) == "fbdecajhgi"


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.2, 10, "hj"), (0.25, 10, "hja"), (0.5, 10, "hjabe"), (0.5, 5, "abe"), (0.2, 4, "ab"), (0.01, 4, "ab")],
)
def test_the_share_is_rounded_up_and_at_least_two(share, count, expected):
    assert letters(held_out(LETTERS[:count], share, "val-1")) == expected


def test_a_fifth_of_35_is_7():
    assert len(held_out([str(i) for i in range(35)], 0.2, "val-1")) == 7  # and ceil(0.2 * 35) is 8


def fifth(**sizes):
    """How many classes of which groups are held out for a fifth, given the groups' sizes."""
    groups = [letter for letter, size in sizes.items() for _ in range(size)]
    chosen = held_out([str(i) for i in range(len(groups))], 0.2, "val-1", groups)
    return {
        group: [groups[c] for c in chosen].count(group) for group in sizes if group in [groups[c] for c in chosen]
    }


def test_whole_groups_are_held_out_within_a_quarter_of_the_share():
    # In the order h j a b e. Wanted: 20 of 100, so 15 to 25.
    assert fifth(h=20, j=20, a=20, b=20, e=20) == {"h": 20}
    assert fifth(h=25, j=20, a=20, b=20, e=15) == {"h": 25}
    assert fifth(h=26, j=30, a=15, b=19, e=10) == {"a": 15}  # h and j are too large
    assert fifth(h=10, j=20, a=12, b=40, e=18) == {"h": 10, "a": 12}  # j after h is too large


def test_if_the_first_group_does_not_fit_the_second_is_the_start():
    # Wanted 20, 15 to 25: h with any other passes 25, and alone it is too small.
    assert fifth(h=14, j=17, a=23, b=23, e=23) == {"j": 17}


def test_groups_that_cannot_be_kept_whole_are_ignored():
    split = fifth(h=40, j=30, a=30)  # wanted 20, 15 to 25
    assert sum(split.values()) == 20
    assert len(split) == 3


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_out_of_range_is_rejected(share):
    with pytest.raises(ValueError, match=f"share = {share} of the classes"):
        held_out(LETTERS, share, "val-1")


def dataset(train, test, validation="", groups=None):
    """A dataset of one image per listed letter."""
    names = sorted({*train, *test, *validation})
    images = [(c, "train") for c in train] + [(c, "validation") for c in validation] + [(c, "test") for c in test]
    return Dataset(
        name="toy",
        keys=tuple(map(str, range(len(images)))),
        labels=np.array([names.index(c) for c, _ in images]),
        class_names=tuple(names),
        split=np.array([split for _, split in images]),
        read=lambda i: Image.new("L", (1, 1)),
        groups=groups,
    )


def test_fair_validation_takes_training_classes_and_leaves_the_rest():
    toy = dataset(train="ddaebbcf", test="hhjj")  # a fifth of 6 training classes: 2, and a b are first
    expected = [("validation" if c in "ab" else "train") for c in "ddaebbcf"] + ["test"] * 4
    assert fair_validation(toy).tolist() == expected
    assert set(toy.split) == {"train", "test"}, "the dataset itself is not changed"


def test_fair_validation_takes_groups():
    # Groups h: a b, j: c d, a: e f. Wanted 2 of 6: h is first.
    toy = dataset(train="abcdef", test="gi", groups=("h", "h", "j", "j", "a", "a", "x", "x"))
    assert letters(np.unique(toy.labels[fair_validation(toy) == "validation"])) == "ab"


def test_a_validation_split_of_the_source_is_kept():
    toy = dataset(train="abcd", validation="ef", test="gh")
    assert fair_validation(toy).tolist() == toy.split.tolist()


def test_too_few_training_classes_are_rejected():
    with pytest.raises(ValueError, match="toy: 3 training classes, 2 of them for validation: at least 2 must remain"):
        fair_validation(dataset(train="abc", test="gh"))


def divided(toy, folds):
    """The classes that validate in each fold; every split is checked to leave the test alone."""
    found = []
    for fold in range(1, folds + 1):
        split = fold_validation(toy, fold, folds)
        assert (split == "test").tolist() == (toy.split == "test").tolist()
        validating = toy.labels[split == "validation"]
        assert not np.isin(toy.labels[split == "train"], validating).any()
        found.append("".join(sorted({toy.class_names[c] for c in validating})))
    return found


def test_every_training_class_validates_in_one_fold():
    # In the order of sha256("fold-1" + letter): a f b e d g h c i j, cut after 4, 3 and 3.
    toy = dataset(train="abcdefghij" * 2, test="xy")
    assert divided(toy, 3) == ["abef", "dgh", "cij"]
    assert divided(toy, 5) == ["af", "be", "dg", "ch", "ij"]
    assert set(toy.split) == {"train", "test"}, "the dataset itself is not changed"


def test_folds_of_glyphs_are_the_same_everywhere():
    glyphs = load("glyphs")
    found = [np.unique(glyphs.labels[fold_validation(glyphs, fold, 4) == "validation"]) for fold in (1, 2, 3, 4)]
    assert [len(classes) for classes in found] == [108, 108, 107, 107]
    assert len(np.unique(np.concatenate(found))) == 430
    assert [glyphs.class_names[classes[0]][:6] for classes in found] == ["U+0023", "U+0024", "U+0022", "U+002B"]


ALPHABETS = {
    **{"Bengali": 46, "Early_Aramaic": 22, "Greek": 24, "Hebrew": 22},
    **{"Latin": 26, "Korean": 40, "Balinese": 24, "Cyrillic": 33},
}


def test_folds_of_whole_alphabets_the_largest_first_to_the_smallest_part():
    # sha256("fold-1" + alphabet): Greek 027c before Balinese af20, Early_Aramaic 0ea5 before Hebrew b4c2.
    groups = [alphabet for alphabet, size in ALPHABETS.items() for _ in range(size)]
    found = parts([str(i) for i in range(len(groups))], 4, "fold-1", groups)
    assert [sorted({groups[c] for c in part}) for part in found] == [
        ["Bengali", "Hebrew"],
        ["Early_Aramaic", "Korean"],
        ["Balinese", "Cyrillic"],
        ["Greek", "Latin"],
    ]
    assert [len(part) for part in found] == [68, 62, 57, 50]


def test_groups_too_unequal_for_folds_are_ignored():
    # 10 classes in 2 folds: 7 and 3 are more than a quarter of 5 away from 5.
    toy = dataset(train="abcdefghij", test="xy", groups=("g",) * 7 + ("h",) * 3 + ("t", "t"))
    assert divided(toy, 2) == ["abdef", "cghij"]
    toy = dataset(train="abcdefghij", test="xy", groups=("g",) * 6 + ("h",) * 4 + ("t", "t"))
    assert divided(toy, 2) == ["abcdef", "ghij"]


@pytest.mark.parametrize(
    ("toy", "fold", "folds", "words"),
    [
        (
            {"train": "abcdefg"},
            1,
            4,
            "toy: 7 training classes are too few for 4 folds of .*; .* at most 3",
        ),
        ({"train": "abc"}, 1, 2, "folds may be none"),
        (
            {"train": "abcdef", "validation": "ij"},
            1,
            2,
            "its source defines the validation classes, which 2 folds",
        ),
        ({"train": "abcdef"}, 3, 2, "fold 3 of 2; choose one from 1 to 2"),
        ({"train": "abcdef"}, None, 2, "fold None of 2; choose one from 1 to 2"),
    ],
)
def test_impossible_folds_are_rejected(toy, fold, folds, words):
    with pytest.raises(ValueError, match=words):
        fold_validation(dataset(test="xy", **toy), fold, folds)
