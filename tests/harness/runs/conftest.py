"""Trials that train within a second."""

import pytest

from harness.config import Choice


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="contrastive", **changes):
        trial = make_trial(arm, **changes)
        return trial.model_copy(update={"dataset": Choice(name="glyphs", options={"classes": 16})})

    return tiny
