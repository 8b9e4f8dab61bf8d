#!/usr/bin/env python3
"""Look every locked version up among the known vulnerabilities, and say plainly what was not looked up.

pip-audit alone is not enough: where the index has no vulnerability service it skips every package, reports "No known
vulnerabilities found" and exits 0. So its JSON is read, and a package that was skipped counts as not audited.

Run it as `make audit`. Exit: 0 every package was looked up and none is known to be vulnerable, 1 a vulnerability is
known, 2 pip-audit itself failed, 3 nothing is known but some or all packages could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# dev.lock holds everything of server.lock at the same versions.
LOCKS = ("dev.lock", "real.lock", "model.lock")
OPTIONS = ("--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json")
# What pip-audit prints when it got no answer, as opposed to failing over the lock itself.
NO_ANSWER = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError", "ProxyError", "SSLError")


def audit(lock: Path) -> tuple[list[str], list[str], list[str], str]:
    """Return (looked up, vulnerable, not looked up, why not), each package as ``name==version``.

    Raises RuntimeError with pip-audit's own words when it fails for another reason than an unreachable service.
    """
    run = subprocess.run(
        [sys.executable, "-m", "pip_audit", *OPTIONS, "--requirement", str(lock)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    try:
        packages = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = run.stderr.strip().splitlines()[-1:] or [f"pip-audit exited with {run.returncode} and said nothing"]
        if any(sign in run.stderr for sign in NO_ANSWER):
            return [], [], [lock.name], reason[0]
        raise RuntimeError(reason[0]) from None
    looked_up, vulnerable, skipped, why = [], [], [], ""
    for package in packages:
        if "skip_reason" in package:
            skipped.append(package["name"])
            why = why or package["skip_reason"]
            continue
        pin = f"{package['name']}=={package['version']}"
        looked_up.append(pin)
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
            vulnerable.append(f"{pin}: {vulnerability['id']} (fixed in: {fixed})")
    return looked_up, vulnerable, skipped, why


def main() -> int:
    """Audit each lock and print one verdict."""
    known, missing = 0, 0
    for name in LOCKS:
        try:
            looked_up, vulnerable, skipped, why = audit(HERE / name)
        except RuntimeError as error:
            print(f"{name}: pip-audit failed: {error}", file=sys.stderr)
            return 2
        counts = f"{len(looked_up)} looked up, {len(vulnerable)} known vulnerabilities, {len(skipped)} not looked up"
        print(f"{name}: {counts}")
        for line in vulnerable:
            print(f"  {line}")
        if skipped:
            print(
                f"  not looked up: {', '.join(skipped) if looked_up else 'all'}. The first, in pip-audit's words: {why}"
            )
        known += len(vulnerable)
        missing += len(skipped)
    if known:
        print(f"AUDIT: {known} known vulnerabilities; raise the version in pyproject.toml and run make lock")
        return 1
    if missing:
        print("NOT AUDITED: the vulnerability service gave no answer for the above, so this says nothing about them")
        return 3
    print("AUDIT: no known vulnerabilities")
    return 0


if __name__ == "__main__":
    sys.exit(main())
