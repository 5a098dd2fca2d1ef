"""Random streams are functions of their names."""

from harness.streams import stream


def test_a_stream_is_a_fixed_number_of_its_names():
    assert stream(0, "glyphs", "batches", 1) == 2007973493266126300  # sha256, so the same on every machine


def test_names_do_not_run_together_and_seeds_differ():
    assert len({stream(0, "a", "b"), stream(0, "ab"), stream(0, "a", 1), stream(1, "a", 1), stream(0, "b", "a")}) == 5
