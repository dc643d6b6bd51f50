"""Usage: audit.py [--lock FILE]... [ARGUMENTS OF pip-audit]; known vulnerabilities of all that is locked.

Exit 0: every distribution was asked about, and none has a known one. 1: some have. 3: the service did not answer, or
not for all: nothing is known, which pip-audit alone would let pass. AUDIT=skip in the environment leaves it out, aloud.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_ASKED = 3
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)
SHOWN = 5  # names of those that could not be asked about


def main(arguments: Sequence[str]) -> int:
    """Run the audit; the exit code."""
    parser = argparse.ArgumentParser(usage="audit.py [--lock FILE]... [ARGUMENTS OF pip-audit]")
    parser.add_argument("--lock", type=Path, action="append")
    options, rest = parser.parse_known_args(arguments)
    locks = options.lock or sorted((ROOT / "requirements").glob("*.txt"))
    wanted = {(normal(name), version) for lock in locks for name, version in _PINNED.findall(lock.read_text())}
    if os.environ.get("AUDIT") == "skip":
        print(f"audit: SKIPPED (AUDIT=skip): {len(wanted)} locked distributions were not looked at")
        return 0
    report, said = audited(locks, rest)
    answered = {(normal(one["name"]), one["version"]) for one in report if "skip_reason" not in one}
    for one in report:
        for found in one.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no release yet"
            print(f"audit: {one['name']} {one['version']}: {found['id']}, mended in {fixed}")
    if missing := sorted(f"{name} {version}" for name, version in wanted - answered):
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        print(
            f"audit: NOT DONE: the vulnerability service did not answer for {len(missing)} of {len(wanted)} locked"
            f" distributions: {', '.join(missing[:SHOWN])}{more}{said}\n"
            "audit: try again where it can be reached, name another (ARGS='--vulnerability-service osv'), or leave it"
            " out knowingly with AUDIT=skip",
            file=sys.stderr,
        )
        return NOT_ASKED
    bad = any(one.get("vulns") for one in report)
    verdict = "see above" if bad else "none has a known vulnerability"
    print(f"audit: {len(wanted)} locked distributions looked at, {verdict}")
    return 1 if bad else 0


def audited(locks: Sequence[Path], arguments: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """pip-audit's report, and the end of what it said when there is none. Nothing is installed for it."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--progress-spinner=off",
        "--format=json",
        *arguments,
    ]
    for lock in locks:
        command += ["--requirement", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError):
        return [], f" ({(done.stderr.strip().splitlines() or ['it said nothing'])[-1]})"
    return report, ""


def normal(name: str) -> str:
    """Names of distributions compare so."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
