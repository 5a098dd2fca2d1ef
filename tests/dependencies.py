"""Check pinned dependencies for known vulnerabilities, as far as the package index of pip can tell.

    python tests/dependencies.py PIP_AUDIT constraints.txt

Print one line and every finding; exit with code 1 if there is a finding. If pip-audit is missing or the index is
unreachable, print that nothing was audited and do not fail: a machine without a network must be able to check its
style.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_S = 180


def report(audited: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return the lines to print for pip-audit's answer, and how many dependencies have a vulnerability."""
    dependencies: Sequence[Mapping[str, Any]] = audited["dependencies"]
    skipped = [one for one in dependencies if "skip_reason" in one]
    found = [one for one in dependencies if one.get("vulns")]
    lines = [f"{one['name']} {one['version']}: {v['id']}" + _fixed(v) for one in found for v in one["vulns"]]
    known = len(dependencies) - len(skipped)
    summary = (
        f"dependencies: {known} of {len(dependencies)} could be audited, {len(found)} with known vulnerabilities"
    )
    if skipped:
        summary += f" ({skipped[0]['skip_reason']})" if not known else ""
    return [summary, *lines], len(found)


def _fixed(vulnerability: Mapping[str, Any]) -> str:
    versions = vulnerability.get("fix_versions") or []
    return f", fixed in {', '.join(versions)}" if versions else ", not fixed yet"


def main(program: str, constraints: str) -> int:
    """Run pip-audit, print its findings and return the exit code."""
    words = [program, "--disable-pip", "--no-deps", "-r", constraints, "--progress-spinner", "off", "-f", "json"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False)
        answer = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        print(f"dependencies: not audited, because pip-audit cannot run here ({type(error).__name__})")
        return 0
    lines, found = report(answer)
    print("\n".join(lines))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
