"""Published benchmarks: what a standard copy holds, and what is said of a copy that holds something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._files import stamped
from harness.errors import some

CLASSIFICATION = "This is the classification split (same classes in train and test)"


@dataclass(frozen=True)
class Standard:
    """The numbers by which a published benchmark is known. Pairs are (training, test)."""

    title: str  # as papers write it
    images: tuple[int, int]
    classes: tuple[int, int]
    layout: str  # what goes where
    source: str  # where it can be found, in words
    roles: Mapping[str, int] = field(default_factory=dict)  # test images by role
    numbers: tuple[range, range] | None = None  # of the classes, whose names begin with them
    look_alikes: Mapping[tuple[int, int] | int, str] = field(default_factory=dict)  # images: what is taken for it

    @property
    def advice(self) -> str:
        """What goes where and where it can be found, for the end of an error."""
        return f"  What goes where: {self.layout}\n  Where it is: {self.source}"

    def deviations(self, dataset: Dataset) -> tuple[str, ...]:
        """What tells a dataset from the standard copy, a sentence each; () where nothing does."""
        masks = [dataset.split == split for split in ("train", "test")]
        images = tuple(int(mask.sum()) for mask in masks)
        classes = tuple(len(np.unique(dataset.labels[mask])) for mask in masks)
        found = self.miscounted(images, classes)
        for role, expected in self.roles.items():
            count = 0 if dataset.role is None else int((dataset.role == role).sum())
            if count != expected:
                found.append(f"{count} {role} images, expected {expected}.")
        return (*found, *self._wrong_numbers(dataset, masks))

    def miscounted(self, images: tuple[int, ...], classes: tuple[int, ...]) -> list[str]:
        """What tells these (training, test) counts from the standard ones, and what they are known to come from."""
        found = []
        for what, counts, expected in (("images", images, self.images), ("classes", classes, self.classes)):
            if counts != expected:
                found.append(f"{'/'.join(map(str, counts))} {what}, expected {'/'.join(map(str, expected))}.")
        if images != self.images and (known := self.look_alikes.get(images) or self.look_alikes.get(sum(images))):
            found.insert(1, f"{known}.")
        return found

    def _wrong_numbers(self, dataset: Dataset, masks: list[np.ndarray]) -> list[str]:
        """Classes that the standard split numbers and the copy lacks, and those that are in the wrong split."""
        found = []
        for split, mask, numbers in zip(("train", "test"), masks, self.numbers or (), strict=False):
            held = {int(re.match(r"\d+", dataset.class_names[c])[0]) for c in np.unique(dataset.labels[mask])}
            for problem, some_numbers in (("lacks", set(numbers) - held), ("should not have", held - set(numbers))):
                if some_numbers:
                    listed = some([str(number) for number in sorted(some_numbers)])
                    found.append(f"{split} {problem} {len(some_numbers)} classes ({listed}).")
        return found

    def guard(self, dataset: Dataset, allow_nonstandard: bool) -> Dataset:
        """The dataset, its files found to exist; refused where it is not standard, unless that is allowed.

        Allowed, it carries its `deviations`. Raises DatasetError.
        """
        found = self.deviations(dataset)
        if found and not allow_nonstandard:
            raise DatasetError(
                f"FAIR-01 {dataset.name}: {' '.join(found)} `metrix-bench doctor {dataset.name}` says more; the "
                f"option allow_nonstandard: true runs it, marked `not {self.title}`"
            )
        if found:
            dataset = replace(dataset, deviations=found)
        return stamped(dataset)
