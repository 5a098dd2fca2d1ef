"""Which classes are held out: chosen by hash, the same for every seed, arm and machine."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from harness.data.datasets import Dataset, DatasetError

# Whole groups are held out if their number of classes is within this share of the wanted number.
GROUP_TOLERANCE = Fraction(1, 4)


def hash_order(names: Sequence[str], salt: str) -> list[int]:
    """Return the indices of `names` in the order of sha256(salt + name): like random, but the same everywhere."""
    digests = [hashlib.sha256((salt + name).encode(errors="surrogateescape")).digest() for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)


def held_out(class_names: Sequence[str], share: float, salt: str, groups: Sequence[str] | None = None) -> list[int]:
    """Return the indices of the ⌈share·C⌉ classes to hold out (at least two), in whole groups if possible.

    class_names: the C candidates, unique.  share: in (0, 1).
    salt: names the purpose ("test-1", "val-1"), so that two purposes do not hold out the same classes.
    groups: (C,) group of each class, or None.

    Without groups: the first ⌈share·C⌉ classes in hash order. With groups: going through the groups in hash order,
    take each group that keeps the number of classes within 5/4 of the wanted number, until 3/4 of it are reached. If
    that fails, start from the second group, and so on. If no start succeeds, hold out single classes as without
    groups.

    Raises DatasetError for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise DatasetError(f"share = {share} of the classes; expected a number between 0 and 1 (both excluded)")
    # 0.2 * 35 is 7, not 7.000000000000001. Among images of a single class every neighbour would be right.
    wanted = max(2, math.ceil(Fraction(str(share)) * len(class_names)))
    if groups is not None and (whole := _whole_groups(groups, wanted, salt)) is not None:
        return [c for c, group in enumerate(groups) if group in whole]
    return hash_order(class_names, salt)[:wanted]


def _whole_groups(groups: Sequence[str], wanted: int, salt: str) -> set[str] | None:
    size = Counter(groups)
    names = sorted(size)
    order = [names[i] for i in hash_order(names, salt)]
    least, most = wanted * (1 - GROUP_TOLERANCE), wanted * (1 + GROUP_TOLERANCE)
    for start in range(len(order)):
        taken, total = set(), 0
        for group in order[start:]:
            if total < least and total + size[group] <= most:
                taken.add(group)
                total += size[group]
        if total >= least:
            return taken
    return None


def fair_validation(dataset: Dataset, share: float = 0.2) -> np.ndarray:
    """Return the split (n,) of all images under the fair protocol: some training classes become "validation".

    They are the first ⌈share·C⌉ of the C training classes (at least two) in the order of sha256("val-1" + class
    name), in whole groups if possible (see `held_out`), and the same for all seeds and arms. A validation split of
    the source is kept, and so is the test split.

    Raises DatasetError if fewer than two classes would remain to train on.
    """
    if (dataset.split == "validation").any():
        return dataset.split.copy()
    classes = np.unique(dataset.labels[dataset.split == "train"])
    groups = None if dataset.groups is None else [dataset.groups[c] for c in classes]
    chosen = classes[held_out([dataset.class_names[c] for c in classes], share, "val-1", groups)]
    if len(classes) - len(chosen) < 2:
        raise DatasetError(
            f"{dataset.name}: {len(classes)} training classes, {len(chosen)} of them for validation: "
            "at least 2 must remain to train on"
        )
    split = dataset.split.astype("<U10")
    split[np.isin(dataset.labels, chosen) & (split == "train")] = "validation"
    return split


def fold_validation(dataset: Dataset, fold: int, folds: int) -> np.ndarray:
    """Return the split (n,) of all images in cross-validation: part `fold` of `folds` of training classes validates.

    Parts are numbered from 1, as equal as possible, of whole groups if possible (see `parts`), and the same for all
    seeds and arms. Every training class is in the validation split of exactly one fold and trains in all others.

    Raises DatasetError for a fold that does not exist, if the source has a validation split, which folds would
    replace, and if a part would have fewer than two classes.
    """
    if fold not in range(1, folds + 1):
        raise DatasetError(f"{dataset.name}: fold {fold} of {folds}; choose one from 1 to {folds}")
    if (dataset.split == "validation").any():
        raise DatasetError(
            f"{dataset.name}: its source defines the validation classes, which {folds} folds would replace; remove "
            "folds (folds: null)"
        )
    classes = np.unique(dataset.labels[dataset.split == "train"])
    if (most := len(classes) // 2) < folds:  # among images of a single class every neighbour would be right
        many = f"at most {most}" if most > 1 else "none"
        raise DatasetError(
            f"{dataset.name}: {len(classes)} training classes are too few for {folds} folds of at least 2 classes; "
            f"folds may be {many}"
        )
    groups = None if dataset.groups is None else [dataset.groups[c] for c in classes]
    chosen = classes[parts([dataset.class_names[c] for c in classes], folds, "fold-1", groups)[fold - 1]]
    split = dataset.split.astype("<U10")
    split[np.isin(dataset.labels, chosen) & (split == "train")] = "validation"
    return split


def parts(class_names: Sequence[str], count: int, salt: str, groups: Sequence[str] | None = None) -> list[list[int]]:
    """Return the indices of the C classes in `count` disjoint parts, equal and of whole groups as far as possible.

    class_names: C unique names, C ≥ count.  salt: names the purpose.  groups: (C,) group of each class, or None.

    Without groups: the classes in hash order, cut into consecutive parts whose sizes differ by at most one. With
    groups: from the largest group to the smallest (equal ones in hash order), each goes to the smallest part so far
    (the first of equal ones; Graham 1969, Bounds on Multiprocessing Timing Anomalies). If the size of a part differs
    from C ÷ count by more than a quarter, classes are divided as without groups.
    """
    if groups is not None and (whole := _parts_of_groups(groups, count, salt)) is not None:
        return whole
    return [part.tolist() for part in np.array_split(hash_order(class_names, salt), count)]


def _parts_of_groups(groups: Sequence[str], count: int, salt: str) -> list[list[int]] | None:
    size = Counter(groups)
    names = sorted(size)
    order = sorted((names[i] for i in hash_order(names, salt)), key=lambda group: -size[group])
    taken: list[set[str]] = [set() for _ in range(count)]
    totals = [0] * count
    for group in order:
        smallest = totals.index(min(totals))
        taken[smallest].add(group)
        totals[smallest] += size[group]
    wanted = Fraction(len(groups), count)
    if any(abs(total - wanted) > GROUP_TOLERANCE * wanted for total in totals):
        return None
    return [[c for c, group in enumerate(groups) if group in part] for part in taken]


def no_validation(dataset: Dataset) -> np.ndarray:
    """Return the split (n,) in which every training image trains, including the source's validation images."""
    return np.where(dataset.split == "validation", "train", dataset.split)


def fingerprint(dataset: Dataset, split: np.ndarray) -> str:
    """Return the sha256 over sorted (image, class, split), which identifies the split that a trial used."""
    rows = sorted(zip(dataset.keys, (dataset.class_names[i] for i in dataset.labels), split, strict=True))
    return hashlib.sha256("\n".join("\t".join(map(str, row)) for row in rows).encode()).hexdigest()
