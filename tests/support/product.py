"""The product as a user starts it: ``memoryctl up`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from memory_layer.cli.access import database_of
from memory_layer.model import SCOPES
from memory_layer.ops import tokens
from tests.support import ctl_server
from tests.support.initialised import make_initialised_folder

START_WITHIN = 60.0  # seconds


@dataclass
class Product:
    """A running ``memoryctl up``."""

    data: Path
    process: subprocess.Popen[str]
    url: str = ""
    token: str = ""
    database: str = ""
    _tokens: dict[tuple[str, str, tuple[str, ...]], str] = field(default_factory=dict)
    _watching: psycopg.Connection[tuple[object, ...]] | None = None

    def issue(self, service: str = "tester", tenant: str = "default", scopes: Sequence[str] = SCOPES) -> str:
        """A token of this product's own key."""
        key = (service, tenant, tuple(scopes))
        if key not in self._tokens:
            self._tokens[key] = tokens.issue(self.data / "keys" / "jwt.pem", service, tenant, scopes, 3600)
        return self._tokens[key]

    def owner(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection that sees everything, to look at what a request left behind."""
        return psycopg.connect(self.database.replace("memory_app@", "postgres@"), autocommit=True)

    def watching(self) -> psycopg.Connection[tuple[object, ...]]:
        """The same, one that stays open: for a look before and after each of many requests."""
        if self._watching is None or self._watching.closed:
            self._watching = self.owner()
        return self._watching

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run memoryctl as a user's shell would after ``eval "$(memoryctl env)"``."""
        environment = clean_environment() | {"MEMORY_URL": self.url, "MEMORY_TOKEN": self.token}
        return run_ctl(*words, env=environment)

    def stop(self) -> int:
        """Ctrl-C, and wait; the exit code."""
        if self._watching is not None:
            self._watching.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        return self.process.wait()


def clean_environment() -> dict[str, str]:
    """The environment without settings that a developer may have exported."""
    ours = ("MEMORY_", "DATABASE_", "EMBEDDINGS_", "VECTOR_", "AUDIT_", "JWT_", "S3_", "SERVICE_ENV", "PORT", "HOST")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run_ctl(
    *words: str, env: dict[str, str] | None = None, timeout: float = 300, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run memoryctl, in a fork of a Python that has its libraries already."""
    environment = env if env is not None else clean_environment()
    if ctl_server.serves(environment):
        return ctl_server.run(words, environment, timeout, stdin, cwd)
    return run_ctl_anew(*words, env=environment, timeout=timeout, stdin=stdin, cwd=cwd)


def run_ctl_anew(
    *words: str, env: dict[str, str] | None = None, timeout: float = 300, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run memoryctl as a shell does, in a new Python: where its start belongs to what is tested."""
    return subprocess.run(
        [sys.executable, "-m", "memory_layer.cli", *words],
        env=env if env is not None else clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        input=stdin,
        cwd=cwd,
    )


def start_product(data: Path, *words: str, environment: dict[str, str] | None = None) -> Product:
    """Start ``memoryctl up`` on a free port and wait until it says that it is ready."""
    log = data.with_name(data.name + ".out")
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "memory_layer.cli", "up", "--data", str(data), "--port", "0", *words],
            env=clean_environment() | (environment or {}),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    product = Product(data, process)
    deadline = time.monotonic() + START_WITHIN
    while True:
        try:
            found = json.loads((data / "up.json").read_text())
            if found["pid"] == process.pid:
                product.url, product.token, product.database = found["url"], found["token"], found["database"]
                return product
        except (FileNotFoundError, PermissionError, json.JSONDecodeError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"memoryctl up did not start (exit {process.poll()}):\n{log.read_text()}")
        time.sleep(0.02)


def memory_entries(data: Path) -> int:
    """How many entries tell of nodes and artifacts. The log also tells of each verification, and breaks its own silence."""
    with database_of(data) as dsn, psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM audit_events WHERE event_type LIKE 'memory.%'").fetchone()
        assert row is not None
        return int(row[0])


@contextlib.contextmanager
def running_product(
    *words: str, data: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[Product]:
    """``memoryctl up`` for the length of the block; it must end with exit code 0.

    On ``data``, or on a new folder that is removed at the end and whose database was initialised before.
    """
    folder = make_initialised_folder() if data is None else data
    try:
        product = start_product(folder, *words, environment=environment)
        try:
            yield product
        finally:
            code = product.stop()
        assert code == 0, folder.with_name(folder.name + ".out").read_text()
    finally:
        if data is None:
            shutil.rmtree(folder.parent, ignore_errors=True)
