"""What the audit of dependencies makes of pip-audit's answers."""

from tests.dependencies import main, report

SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
UNKNOWN = {"name": "ours", "skip_reason": "not found"}
BROKEN = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "PYSEC-2"}]}


def test_vulnerabilities_are_named_with_the_version_that_fixes_them():
    lines, found = report({"dependencies": [SOUND, UNKNOWN, BROKEN]})
    assert found == 1
    assert lines == [
        "dependencies: 2 of 3 could be audited, 1 with known vulnerabilities",
        "old 1.0: PYSEC-1, fixed in 1.1",
        "old 1.0: PYSEC-2, not fixed yet",
    ]


def test_an_unreachable_index_is_reported_and_fails_nothing():
    lines, found = report({"dependencies": [UNKNOWN]})
    assert lines == ["dependencies: 0 of 1 could be audited, 0 with known vulnerabilities (not found)"]
    assert found == 0


def test_without_pip_audit_nothing_is_audited(capsys):
    assert main("/no/such/pip-audit", "constraints.txt") == 0
    assert "not audited" in capsys.readouterr().out
