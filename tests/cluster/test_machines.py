"""The clusters that tests start need no files of this machine, and report why they do not start."""

import pytest

from tests.cluster import machines


def test_a_cluster_needs_no_files_of_an_earlier_ray(tmp_path, monkeypatch):
    """Ray's default folder for temporary files is neither needed nor created."""
    monkeypatch.setenv("RAY_TMPDIR", str(default := tmp_path / "default"))
    cluster = machines.Machines(tmp_path, ())
    cluster.end()
    assert cluster.address.startswith("127.0.0.1:")
    assert not default.exists()


def test_a_cluster_that_does_not_start_reports_why(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "ROOT", tmp_path)  # where there is no such program
    with pytest.raises(EOFError, match=r"^the cluster ended:\n.*No module named 'tests'"):
        machines.Machines(tmp_path, ())
