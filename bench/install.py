"""`make install` from the locks into a fresh .venv."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import ROOT, Table


def measure() -> Table:
    with tempfile.TemporaryDirectory(prefix="memory-layer-bench-") as place:
        venv = Path(place) / ".venv"
        base = Path(sys.base_prefix) / "bin" / "python3"
        command = ["make", "--silent", "install", f"VENV={venv}", f"PYTHON={base if base.exists() else sys.executable}"]
        began = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        seconds = time.monotonic() - began
        size = sum(path.lstat().st_blocks * 512 for path in venv.rglob("*") if not path.is_symlink())
    rows = [("install time", f"{seconds:.0f} s"), ("size of `.venv`", f"{size / 2**20:.0f} MB (limit 500 MB)")]
    cached = "with pip's cache" if not os.environ.get("PIP_NO_CACHE_DIR") else "without pip's cache"
    return Table("install", rows, f"{cached.capitalize()}, package index as this machine is configured")
