"""`memoryctl serve` on a database of its own, durable, without a worker: the write path and nothing beside it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bench.running import folder
from memory_layer import config
from memory_layer.model import SCOPES
from memory_layer.ops import embedded, first_start, migrate, tokens
from tests.support.product import clean_environment


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    url: str
    data: Path
    cluster: embedded.Cluster
    process: subprocess.Popen[str]

    def token(self, tenant: str = "bench") -> str:
        return tokens.issue(self.data / "keys" / "jwt.pem", "bench", tenant, SCOPES, 3600)


@contextlib.contextmanager
def database(environment: dict[str, str] | None = None) -> Iterator[tuple[Path, embedded.Cluster]]:
    """An embedded Postgres as ``memoryctl up`` runs it (fsync on), migrated, with keys and a log; ``environment``: of who opens that."""
    with folder() as data, embedded.start(data) as cluster:
        embedded.prepare_database(cluster)
        migrate.apply(cluster.dsn("memory_owner"))
        migrate.apply_pgvector(cluster.dsn("memory_owner"))
        first_start.ensure_keys(data)
        with mock.patch.dict(os.environ, environment or {}):
            settings = config.load(environment or {})
            asyncio.run(first_start.start_log(settings, data, cluster.dsn("memory_owner")))
        yield data, cluster


@contextlib.contextmanager
def serving(
    data: Path, cluster: embedded.Cluster, *, processes: int = 1, environment: dict[str, str] | None = None
) -> Iterator[Served]:
    """The API on that database."""
    settings = {"DATABASE_URL": cluster.dsn("memory_app"), "PORT": "0", "EMBEDDINGS_PROVIDER": "none"}
    # To a file, as a service's log goes: a pipe that nobody reads is full after some thousand requests, and the server waits for it.
    with tempfile.NamedTemporaryFile("w+", prefix="bench-serve-", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "memory_layer.cli", "serve", "--data", str(data), "--processes", str(processes)],
            env=clean_environment() | settings | (environment or {}),
            stderr=log,
            text=True,
        )
        try:
            yield Served(_ready(process, Path(log.name)), data, cluster, process)
        finally:
            process.terminate()
            process.wait(30)


def _ready(process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if not line.startswith("listening on "):
                continue
            url = line.split()[-1]
            while time.monotonic() < deadline:
                connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection.request("GET", "/readyz")
                    if connection.getresponse().status == 200:
                        return url
                time.sleep(0.05)
        time.sleep(0.05)
    raise AssertionError(f"the server did not start (exit {process.poll()}):\n{log.read_text()}")
