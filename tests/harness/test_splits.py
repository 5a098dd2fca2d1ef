"""Which classes are held out, by hand: sha256 of "val-1" and "test-1" with a letter begin with

        a     b     c     d     e     f     g     h     i     j
val-1   8fe0  938f  dffd  d1f6  ad69  e04e  f136  51fd  d40e  6538
test-1  96bd  2492  8be1  3c2d  859f  2171  eaae  d68b  f3d3  c762
"""

import numpy as np
import pytest

from harness.datasets import Dataset
from harness.splits import fair_validation, hash_order, held_out

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


def test_whole_groups_are_taken_within_a_quarter_of_the_share():
    # In the order h j a b e. Wanted: 20 of 100, so 15 to 25.
    assert fifth(h=20, j=20, a=20, b=20, e=20) == {"h": 20}
    assert fifth(h=25, j=20, a=20, b=20, e=15) == {"h": 25}
    assert fifth(h=26, j=30, a=15, b=19, e=10) == {"a": 15}  # h and j are too large
    assert fifth(h=10, j=20, a=12, b=40, e=18) == {"h": 10, "a": 12}  # j after h is too large


def test_where_the_first_group_spoils_it_the_second_is_the_start():
    # Wanted 20, 15 to 25: h with any other passes 25, and alone it is too small.
    assert fifth(h=14, j=17, a=23, b=23, e=23) == {"j": 17}


def test_groups_that_cannot_be_kept_whole_are_disregarded():
    split = fifth(h=40, j=30, a=30)  # wanted 20, 15 to 25
    assert sum(split.values()) == 20
    assert len(split) == 3


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(share):
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
        read=None,
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


def test_too_few_training_classes_are_refused():
    with pytest.raises(ValueError, match="toy: 3 training classes, 2 of them for validation: at least 2 must remain"):
        fair_validation(dataset(train="abc", test="gh"))
