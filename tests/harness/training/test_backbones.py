"""Backbones by name."""

from harness.training.backbones import names


def test_names_match_a_pattern():
    assert names("test_convnext*") == ("test_convnext", "test_convnext2", "test_convnext3")
