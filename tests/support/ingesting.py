"""A folder, and `memoryctl ingest` in it against a running product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Protocol

from memory_layer.client import MemoryClient
from tests.support.product import run_ctl

ROOT = Path(__file__).resolve().parents[2]


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


class Product(Protocol):
    """A running Memory Layer (fixture ``product``)."""

    url: str
    token: str


class Shell:
    """A folder of this test's own and memoryctl in it. ``mark`` is in the path, so other tests' nodes are others."""

    def __init__(self, product: Product, folder: Path) -> None:
        self.mark = f"run-{uuid.uuid4().hex[:12]}"
        self.folder = folder / self.mark
        self.folder.mkdir()
        self.cwd = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("MEMORY_")} | {
            "PYTHONPATH": str(ROOT),
            "MEMORY_URL": product.url,
            "MEMORY_TOKEN": product.token,
        }
        self.memory = MemoryClient(product.url, product.token)

    def write(self, name: str, data: str | bytes) -> str:
        """Write a file below the folder; gives the path to name on the command line."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return f"{self.mark}/{name}"

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "memory_layer.cli", "ingest", *args]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.cwd, env=self.env
        )

    def ingest(self, *args: str, code: int = 0) -> tuple[dict[str, Any], str]:
        """Run to the end; the JSON summary and what was said."""
        done = run_ctl("ingest", *args, "--json", env=self.env, timeout=120, cwd=self.cwd)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout), done.stderr

    def nodes(self, path: str) -> list[dict[str, Any]]:
        """Nodes that came from a file, by line."""
        found = self.memory.list({"metadata.source.path": path})
        return sorted(found, key=lambda node: int(node["metadata"]["source"]["line"]))
