"""Published benchmarks: what a standard copy contains, and how another copy differs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import stamped
from harness.errors import first_few

CLASSIFICATION = "This is the classification split (same classes in train and test)"


@dataclass(frozen=True)
class Standard:
    """The known numbers of a published benchmark. Pairs are (training, test)."""

    title: str  # as papers write it
    images: tuple[int, int]
    classes: tuple[int, int]
    layout: str  # what goes where
    source: str  # where to get it
    roles: Mapping[str, int] = field(default_factory=dict)  # test images by role
    numbers: tuple[range, range] | None = None  # of the classes, whose names start with them
    look_alikes: Mapping[tuple[int, int] | int, str] = field(default_factory=dict)  # known wrong copies, by images

    @property
    def advice(self) -> str:
        """Return what goes where and where to get it, for the end of an error message."""
        return f"  What goes where: {self.layout}\n  Where to get it: {self.source}"

    def deviations(self, dataset: Dataset) -> tuple[str, ...]:
        """Return how a dataset differs from the standard copy, one sentence each; () if it does not."""
        masks = [dataset.split == split for split in ("train", "test")]
        train, test = masks
        images = int(train.sum()), int(test.sum())
        classes = len(np.unique(dataset.labels[train])), len(np.unique(dataset.labels[test]))
        sentences = self.miscounted(images, classes)
        for role, expected in self.roles.items():
            count = 0 if dataset.role is None else int((dataset.role == role).sum())
            if count != expected:
                sentences.append(f"{count} {role} images, expected {expected}.")
        return (*sentences, *self._wrong_numbers(dataset, masks))

    def miscounted(self, images: tuple[int, int], classes: tuple[int, int]) -> list[str]:
        """Return how these (training, test) counts differ from the standard ones, and what is known about them."""
        sentences = []
        for what, counts, expected in (("images", images, self.images), ("classes", classes, self.classes)):
            if counts != expected:
                sentences.append(f"{'/'.join(map(str, counts))} {what}, expected {'/'.join(map(str, expected))}.")
        if images != self.images and (known := self.look_alikes.get(images) or self.look_alikes.get(sum(images))):
            sentences.insert(1, f"{known}.")
        return sentences

    def _wrong_numbers(self, dataset: Dataset, masks: list[np.ndarray]) -> list[str]:
        """Return sentences about missing classes, and about classes in the wrong split, by number."""
        sentences = []
        for split, mask, numbers in zip(("train", "test"), masks, self.numbers or (), strict=False):
            names = [dataset.class_names[c] for c in np.unique(dataset.labels[mask])]
            held = {int(number[0]) for name in names if (number := re.match(r"\d+", name))}
            for problem, wrong in (("lacks", set(numbers) - held), ("should not have", held - set(numbers))):
                if wrong:
                    listed = first_few([str(number) for number in sorted(wrong)])
                    sentences.append(f"{split} {problem} {len(wrong)} classes ({listed}).")
        return sentences

    def guard(self, dataset: Dataset, allow_nonstandard: bool) -> Dataset:
        """Return the dataset with stamps of its files, and with its `deviations` if it is not standard but allowed.

        Raises DatasetError if it is not standard and not allowed, or if files are missing.
        """
        deviations = self.deviations(dataset)
        if deviations and not allow_nonstandard:
            raise DatasetError(
                f"FAIR-01 {dataset.name}: {' '.join(deviations)} `metrix-bench doctor {dataset.name}` gives details; "
                f"the option allow_nonstandard: true runs it, marked `not {self.title}`"
            )
        if deviations:
            dataset = replace(dataset, deviations=deviations)
        return stamped(dataset)
