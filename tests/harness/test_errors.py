"""Errors that a user can fix are told from bugs by their class."""

import importlib
import inspect
import pkgutil

import harness
from harness.errors import UserError

INSIDE = {
    "Diverged",
    "Misfit",
    "RankFailed",
    "FolderGone",
    "_Left",
    "_Stop",
    "NotMixable",
}  # dealt with where they are met


def test_every_error_of_the_harness_is_one_that_a_user_can_fix_or_stays_inside():
    found = {}
    for module in pkgutil.walk_packages(harness.__path__, "harness."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, Exception) and value.__module__.startswith("harness."):
                found[name] = value
    assert {"GridError", "RunError", "DatasetError", "ModelError", "CheckpointError", "Unfair"} <= found.keys()
    assert {name for name, error in found.items() if not issubclass(error, UserError)} <= INSIDE
