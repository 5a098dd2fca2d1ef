"""Whether a pinned dependency has a vulnerability that is known, as far as the index that pip uses can be asked.

    python tests/dependencies.py PIP_AUDIT constraints.txt

Prints one line and every finding; exit code 1 where there is one. Where pip-audit is missing, or nobody answers, it
says that nothing was audited, and does not fail: a machine without a network must be able to check its style.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_S = 180


def report(audited: Mapping[str, Any]) -> tuple[list[str], int]:
    """The lines to print for pip-audit's answer, and how many dependencies have a vulnerability."""
    dependencies: Sequence[Mapping[str, Any]] = audited["dependencies"]
    skipped = [one for one in dependencies if "skip_reason" in one]
    found = [one for one in dependencies if one.get("vulns")]
    lines = [f"{one['name']} {one['version']}: {v['id']}" + _mended(v) for one in found for v in one["vulns"]]
    known = len(dependencies) - len(skipped)
    said = f"dependencies: {known} of {len(dependencies)} could be audited, {len(found)} with known vulnerabilities"
    if skipped:
        said += f" ({skipped[0]['skip_reason']})" if not known else ""
    return [said, *lines], len(found)


def _mended(vulnerability: Mapping[str, Any]) -> str:
    versions = vulnerability.get("fix_versions") or []
    return f", mended in {', '.join(versions)}" if versions else ", not mended yet"


def main(program: str, constraints: str) -> int:
    """Ask, and print."""
    words = [program, "--disable-pip", "--no-deps", "-r", constraints, "--progress-spinner", "off", "-f", "json"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False)
        answer = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        print(f"dependencies: not audited, since pip-audit cannot run here ({type(error).__name__})")
        return 0
    lines, found = report(answer)
    print("\n".join(lines))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
