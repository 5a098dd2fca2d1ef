"""Whatever lies in a folder is indexed, passed over with its count, or refused in words."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from harness import datasets, doctor
from harness.datasets import DatasetError
from harness.errors import printable
from tests.harness import strangers

patient = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _every_example(monkeypatch):
    """What is passed over is named in full."""
    monkeypatch.setattr(datasets, "EXAMPLES", 10**6)


def loaded(name, folder):
    """The dataset, or None where it is refused in words that can be printed."""
    try:
        return datasets.load(name, folder, folder)
    except DatasetError as error:
        str(error).encode()
        return None


def examined(name, folder):
    found = doctor.examine(name, folder, folder)
    for sentence in (*(finding.sentence for finding in found.findings), *found.unreadable):
        assert sentence.encode()
    return found


@given(strangers.trees())
@patient
def test_a_folder_is_indexed_passed_over_or_refused(tree):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve() / "outer" / "data"
        strangers.plant(folder, tree)
        try:
            dataset, found = loaded("folder", folder), examined("folder", folder)
            assert (dataset is None) <= (not found.sound), "the doctor passes what a run refuses"
            if dataset is None:
                return
            passed = [path for one in dataset.passed_over for path in one.examples]
            assert len(passed) == sum(one.count for one in dataset.passed_over)
            known = {*dataset.keys, *passed}
            strangers.reopen(folder)
            for path in map(printable, strangers.lying(folder)):
                assert known & {path, *map(str, Path(path).parents)}, f"{path} is lost"
            assert len({os.path.realpath(file) for file in dataset.files}) == len(dataset)
            assert not {*dataset.keys} & {*passed}
            assert dataset.index_fingerprint == found.fingerprint
        finally:
            strangers.reopen(folder)


@given(strangers.manifests())
@patient
def test_a_manifest_is_indexed_or_refused(case):
    rows, encoding, line_end = case
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        strangers.plant(folder, [])
        (folder / "manifest.csv").write_bytes(strangers.manifest(rows, encoding, line_end))
        dataset, found = loaded("manifest", folder), examined("manifest", folder)
        assert (dataset is None) == (not found.sound)
        if dataset is not None:
            assert len(dataset) == len(strangers.CLASSES) * strangers.IMAGES + len(rows)
