"""A small trial on a folder of images that a test may change."""

import pytest

from harness.config import Choice
from harness.training import pictures
from tests.harness.pictures import class_folders


@pytest.fixture
def folder_trial(make_trial):
    def folder_trial(arm="contrastive", **changes):
        trial = make_trial(arm, **{"epochs": 3, "examples_per_class": 2, "batch_size": 8, **changes})
        return trial.model_copy(update={"dataset": Choice(name="folder"), "keep": "weights"})

    return folder_trial


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of images that a test may change: each trial looks at it anew, as another process would."""
    monkeypatch.setattr(pictures, "_dataset", pictures._dataset.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return class_folders(tmp_path / "data", classes=12, images=5)
