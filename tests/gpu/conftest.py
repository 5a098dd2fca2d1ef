"""Mark the tests in this folder as `gpu`; they are skipped without a GPU."""

from pathlib import Path

import pytest
import torch

from tests.gpu.place import Place


def pytest_itemcollected(item):
    if Path(__file__).parent in item.path.parents:
        item.add_marker("gpu")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU; make gpu ARGS=--stand-in tries these tests on the processor")
    folder = tmp_path_factory.mktemp("gpu")
    return Place(torch.device("cuda", 0), folder / "scratch", folder)
