"""Sources of every dataset, small and of the same layout as the real ones."""

from importlib import import_module

import pytest

from harness.data import datasets


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def load_source(tmp_path, cache):
    """Write the source of a dataset (tests/harness/data/datasets/sources/<name>.py) and load it, with its OPTIONS."""

    def load(name):
        source = import_module(f"tests.harness.data.datasets.sources.{name}")
        return datasets.load(name, source.write(tmp_path), cache, **getattr(source, "OPTIONS", {}))

    return load
