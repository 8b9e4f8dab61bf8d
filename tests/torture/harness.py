"""What is tortured, and how: an installation whose every part can be hurt alone, and the storm that does it.

Three tables make a storm: victims (``victims.py``), the workload's operations (``workload.py``) and the checks that run when all is
calm again (``checks.py``). A new part of the product gets a row in each.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memory_layer.model import SCOPES
from memory_layer.ops import embedded, first_start, migrate, tokens
from tests.support import kms_server
from tests.support.folders import make_data_folder
from tests.support.postgres_proxy import PostgresProxy
from tests.support.product import clean_environment, run_ctl

READY_WITHIN = 90.0  # seconds; the machine may be busy
Say = Callable[[str], None]


@dataclass(eq=False)
class Process:
    """A ``memoryctl`` command that is started again whenever it was killed. ``url`` is empty while it does not answer."""

    name: str
    words: Sequence[str]
    environment: dict[str, str]
    log: Path
    serves: bool = True
    process: subprocess.Popen[str] | None = None
    url: str = ""
    starts: int = 0

    @property
    def pid(self) -> int | None:
        """Of a living one."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it is ready; again when it ends before. Raises AssertionError after READY_WITHIN."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            with self.log.open("a") as out:
                out.write(f"--- start {self.starts}\n")
                out.flush()
                begin = self.log.stat().st_size
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "memory_layer.cli", *self.words, "--parent", str(os.getpid())],
                    env=self.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, text=True,
                )  # fmt: skip
            self.starts += 1
            if not self.serves or self._answers(begin, deadline):
                return
            assert time.monotonic() < deadline, f"{self.name} did not start; see {self.log}"

    def _answers(self, begin: int, deadline: float) -> bool:
        """Whether it came to answer; False when it ended before. A server whose signer is down answers, too."""
        assert self.process is not None
        url = ""
        while self.process.poll() is None and time.monotonic() < deadline:
            if not url:
                lines = self.log.read_text()[begin:].splitlines()
                url = next((line.split()[-1] for line in lines if line.startswith("listening on http")), "")
            elif _status(url, "/livez") == 200:
                self.url = url
                return True
            time.sleep(0.02)
        return False

    def kill(self) -> bool:
        """SIGKILL; whether there was anything to kill."""
        pid, self.url = self.pid, ""
        if pid is None or self.process is None:
            return False
        self.process.kill()
        self.process.wait()
        return True

    def stop(self) -> None:
        self.url = ""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def children(self) -> list[int]:
        """Pids of the living processes that this one started."""
        found: list[int] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found


def _status(url: str, path: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@dataclass(eq=False)
class Signer:
    """The stand-in for KMS in a process of its own; its keys outlive it."""

    state: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.support.kms_server",
            "--state",
            str(self.state),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            [*command, "--delay-ms", "2"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=clean_environment(),
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.process.stdout.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def fault(self, name: str, times: int) -> None:
        """One of the stand-in's faults, for the next signatures."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/_control", json.dumps({"fault": name, "times": times}))
            connection.getresponse().read()


@dataclass(eq=False)
class Installation:
    """Postgres behind a proxy, a signer, and the processes of the product."""

    data: Path
    cluster: embedded.Cluster
    proxy: PostgresProxy
    signer: Signer | None
    processes: dict[str, Process] = field(default_factory=dict)
    restarts: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes."""
        settings = {
            "DATABASE_URL": self.proxy.through(self.cluster.dsn("memory_app")), "PORT": "0", "EMBEDDINGS_PROVIDER": "none",
        }  # fmt: skip
        if self.signer is not None:
            kms = {"AUDIT_SIGNER": "kms", "KMS_ENDPOINT": self.signer.url, "AUDIT_KMS_KEY_ID": kms_server.ALIAS}
            settings |= kms_server.ENVIRONMENT | kms
        return clean_environment() | settings

    def add(self, name: str, *words: str, **environment: str) -> Process:
        """Start ``memoryctl`` with these words, in this installation."""
        process = Process(
            name, [*words, "--data", str(self.data)], self.environment | environment,
            self.data.parent / f"{name}.log", serves=words[0] == "serve",
        )  # fmt: skip
        process.start()
        self.processes[name] = process
        return process

    @property
    def urls(self) -> list[str]:
        """Of those that answer."""
        return [process.url for process in list(self.processes.values()) if process.url]

    def token(self, tenant: str) -> str:
        return tokens.issue(self.data / "keys" / "jwt.pem", "torture", tenant, SCOPES, 7200)

    def kill_postgres(self) -> None:
        """SIGKILL the postmaster, and start Postgres again: it recovers from its log."""
        with self.restarts:
            os.kill(self.cluster.pid, signal.SIGKILL)
            self.cluster.process.wait()
            self.cluster.stop()  # only lets go of the folder
            self.cluster = embedded.start(self.data)

    def close(self) -> None:
        for process in self.processes.values():
            process.stop()


@contextlib.asynccontextmanager
async def installed(kms: bool, say: Say) -> AsyncIterator[Installation]:
    """A migrated, durable Postgres with its proxy and signer. Kept, and its path told, when the block fails."""
    data = make_data_folder(disk=True)
    install = await asyncio.to_thread(_install, data, kms)
    try:
        with install.proxy:
            try:
                yield install
            finally:
                await asyncio.to_thread(install.close)
    except BaseException:
        say(f"the data folder is kept: {data}")
        raise
    else:
        await asyncio.to_thread(install.cluster.stop)
        shutil.rmtree(data.parent, ignore_errors=True)
    finally:
        install.cluster.stop()
        if install.signer is not None:
            install.signer.kill()


def _install(data: Path, kms: bool) -> Installation:
    cluster = embedded.start(data)
    embedded.prepare_database(cluster)
    migrate.apply(cluster.dsn("memory_owner"))
    migrate.apply_pgvector(cluster.dsn("memory_owner"))
    first_start.ensure_keys(data)
    signer = Signer(data.parent / "kms.json") if kms else None
    if signer is not None:
        signer.start()
    installation = Installation(data, cluster, PostgresProxy(cluster.dsn()), signer)
    owner = {"MIGRATION_DATABASE_URL": cluster.dsn("memory_owner")}
    opened = run_ctl("migrate", "apply", "--open-log", "--data", str(data), env=installation.environment | owner)
    assert opened.returncode == 0, opened.stderr
    return installation


# --- storms


@dataclass(frozen=True)
class Victim:
    """Something to hurt. ``strike`` says what it did, or None when there was nothing to hurt; it also sees to the recovery.

    ``share``: how often it is chosen, beside the others. ``kill``: whether it counts as a kill, or is a passing fault.
    """

    name: str
    share: int
    strike: Callable[[Storm], Awaitable[str | None]]
    kill: bool = True


@dataclass(eq=False)
class Storm:
    """One installation under load and blows."""

    install: Installation
    random: random.Random
    say: Say
    acknowledged: Callable[[], int]  # how many writes have been, so far
    struck: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    background: set[asyncio.Task[None]] = field(default_factory=set)
    failures: list[BaseException] = field(default_factory=list)
    silence: tuple[float, str] = (0.0, "")  # the longest time without an acknowledged write, and what came before it
    _last: str = "the start"
    _told: float = 0.0

    def later(self, work: Callable[[], object]) -> None:
        """Do this in a thread while the storm goes on: a restart. What it raises ends the storm."""

        async def run() -> None:
            try:
                await asyncio.to_thread(work)
            except Exception as error:  # noqa: BLE001  # raised again by the storm
                self.failures.append(error)

        task = asyncio.create_task(run())
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def rage(self, victims: Sequence[Victim], kills: int) -> None:
        """Strike at random until there were so many kills, each only once writes are acknowledged again."""
        until = self.kills + kills
        shares = [victim.share for victim in victims]
        while self.kills < until:
            await self._under_load()
            victim = self.random.choices(victims, shares)[0]
            done = await victim.strike(self)
            self._restart_what_ended()
            if done is None:
                continue
            self._last = done
            self.struck[victim.name] += 1
            self.kills += victim.kill
            if time.monotonic() - self._told > 5:
                self._told = time.monotonic()
                self.say(f"{self.kills} kills, {self.acknowledged()} writes acknowledged; the last: {done}")
        await asyncio.gather(*self.background)
        self._raise()

    def _restart_what_ended(self) -> None:
        """A worker that found no Postgres at its start has ended: a supervisor starts it again."""
        for process in self.install.processes.values():
            if not process.serves and process.pid is None and not self.background:
                self.later(process.start)

    async def _under_load(self) -> None:
        before, began = self.acknowledged(), time.monotonic()
        deadline = began + READY_WITHIN
        while self.acknowledged() == before:
            await self._wait(deadline)
        more = self.random.randint(1, 20)
        self.silence = max(self.silence, (time.monotonic() - began, self._last))
        while self.acknowledged() < before + more:
            await self._wait(deadline)

    async def _wait(self, deadline: float) -> None:
        self._raise()
        assert time.monotonic() < deadline, "no write was acknowledged any more: the service does not recover"
        await asyncio.sleep(0.01)

    def _raise(self) -> None:
        if self.failures:
            raise self.failures[0]


async def happened(condition: Callable[[], bool], within: float = 5.0) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True
