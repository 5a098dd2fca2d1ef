"""Sources of every dataset, small and of the same layout as the real ones."""

from importlib import import_module

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def write_source(tmp_path):
    """Write the source of a dataset (tests/harness/datasets/sources/<name>.py) and give where it lies."""
    return lambda name: import_module(f"tests.harness.datasets.sources.{name}").write(tmp_path)
