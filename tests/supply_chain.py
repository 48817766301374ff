"""`make audit`: the known holes of the packages that a file pins, by pip-audit; and what it could not check.

pip-audit passes where its database cannot be reached, or does not know a package. Here that is told, with exit code 2.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

COMMAND = ["pip-audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]


def verdict(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code for a report of pip-audit (0: no hole, 1: holes, 2: not all was checked), and lines."""
    lines, unchecked, holes = [], [], 0
    for package in report["dependencies"]:
        if "vulns" not in package:
            unchecked.append(package["name"])
        for hole in package.get("vulns", ()):
            holes += 1
            fixed = ", ".join(hole["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    checked = len(report["dependencies"]) - len(unchecked)
    lines.append(f"{checked} packages checked, {holes} known holes")
    if unchecked:
        lines.append(f"not checked, for the database does not answer for them: {', '.join(unchecked)}")
    return (1 if holes else 2 if unchecked or not checked else 0), lines


def audit(requirements: str) -> int:
    """Run pip-audit on a file of pinned packages, print what it found, and return the exit code."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        done = subprocess.run([*COMMAND, "-r", requirements, "-o", str(file)], capture_output=True, text=True)
        if not file.exists() or not file.stat().st_size:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            print(f"not checked: pip-audit made no report: {said[-1]}")
            return 2
        code, lines = verdict(json.loads(file.read_text()))
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1]))
