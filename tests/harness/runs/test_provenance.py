"""Where the code comes from: a commit of this project, or a digest of the sources."""

import shutil
import subprocess

from harness.runs import provenance


def test_an_installed_copy_does_not_take_the_commit_of_a_surrounding_checkout(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    copy = tmp_path / "site-packages" / "harness" / "runs" / "provenance.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, copy)
    monkeypatch.setattr(provenance, "__file__", str(copy))
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "site-packages")
    found = provenance._revision()
    assert found["revision"] is None
    assert len(found["sources"]) == 64
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "ours"], check=True)
    assert len(provenance._revision()["revision"]) == 40
