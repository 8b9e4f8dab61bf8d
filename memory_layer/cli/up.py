"""`memoryctl up`: Postgres, API and worker on this machine, as one thing that starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from memory_layer import config, private
from memory_layer.cli import render
from memory_layer.cli.access import data_folder
from memory_layer.cli.processes import check_processes
from memory_layer.errors import DependencyUnavailable, PolicyRefused, UsageError

READY_WITHIN = 60.0  # seconds
STOP_WITHIN = 20.0  # seconds
LOST_WITHIN = 5.0  # seconds
TOKEN_DAYS = 30
ERROR_PREFIX = "memoryctl: "  # how the line with a part's reason begins
# A part that ends by itself is started again, after a pause that grows while it goes on ending, a few times.
PAUSE, MAX_PAUSE = 0.5, 10.0  # seconds
LARGE_LOG = 64 * 1024 * 1024  # bytes of a part's log; what `up` starts next begins a new one
MAX_ENDS, WITHIN = 5, 300.0  # ends within so many seconds, after which everything is stopped
LAST_LINES = 5  # of a part's log that are shown when it ended


def up(
    *,
    data: Annotated[
        Path | None, Parameter(help="Data folder; default ~/.memory-layer (root: /var/lib/memory-layer).")
    ] = None,
    port: Annotated[int | None, Parameter(help="Port; 0 takes a free one. Default 4300, or PORT.")] = None,
    processes: Annotated[int, Parameter(help="How many processes answer at that port.")] = 1,
) -> int:
    """Run the whole product on this machine until Ctrl-C; the next start finds the data.

    Postgres (unless DATABASE_URL names another), the file store and the keys live in the data folder.

    For example:

      memoryctl up
      memoryctl up --data /srv/memory --port 4301
    """
    started = time.monotonic()
    check_processes(processes)
    settings = config.load(port=port)
    for warning in config.unknown_variables():
        render.say(f"warning: {warning}")
    stop = _Stop()
    with contextlib.ExitStack() as stack:
        folder = data_folder(data)
        url, environment, log_origin, digest = _prepare(stack, settings, folder, stop)
        _start_children(stack, folder, environment, stop, url.listener, processes)
        address = f"{settings.scheme}://{url.host}:{url.port}"
        if _await_ready(url, settings.scheme, stop):
            token = _write_up_file(stack, settings, folder, address, environment["DATABASE_URL"])
            _greet(address, token, folder, log_origin, digest, time.monotonic() - started)
            stop.was_ready = True
            stop.wait()
        if not stop.lost:
            render.say("\nstopping ...")
    if stop.lost:
        return _report_lost_part(stop, folder / "log")
    render.say("stopped. The data stays in " + str(folder))
    return 0


def _report_lost_part(stop: _Stop, logs: Path) -> int:
    """Say which part ended and how, and where it gave its reason, that and its exit code."""
    part = stop.lost
    assert part is not None  # noqa: S101 - narrows the type
    lines, code = part.log_lines(), part.process.returncode
    reason = next((line for line in reversed(lines) if line.startswith(ERROR_PREFIX)), "").removeprefix(ERROR_PREFIX)
    if reason and code > 0:
        return render.failure(f"{part.name}: {reason}", code)
    often = f", {len(part.ends) + 1} times within {WITHIN / 60:.0f} minutes" if part.ends else ""
    last_lines = "".join(f"\n  {line}" for line in _shown(lines))
    raise DependencyUnavailable(
        f"{part.name} ended by itself ({how_it_ended(code)}){often}; everything was stopped. See {part.path or logs}."
        + (f" It said last:{last_lines}" if last_lines else "")
    )


def _shown(lines: list[str]) -> list[str]:
    """The end of a part's log, for people."""
    from memory_layer.telemetry.logs import for_people

    return [for_people(line) for line in lines[-LAST_LINES:]]


def how_it_ended(code: int) -> str:
    """Of a process, in words: its exit code, or the signal that ended it."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@dataclass(slots=True)
class _Part:
    """A process of the product. ``command`` None: Postgres, which is not started again beneath the others."""

    name: str
    process: subprocess.Popen[bytes]
    command: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    path: Path | None = None  # its log
    start: int = 0  # where in the log it began
    ends: list[float] = field(default_factory=list)  # when it ended, lately
    due: float | None = None  # when it is started again

    def log_lines(self) -> list[str]:
        """What it wrote into its log since it began."""
        if self.path is None:
            return []
        with self.path.open("rb") as log:
            log.seek(self.start)
            return log.read().decode("utf-8", "replace").splitlines()

    def launch(self) -> None:
        """Start it again."""
        assert self.command is not None and self.path is not None  # noqa: S101, PT018 - those of the API and the worker
        self.process, self.start = _open(self.command, self.environment, self.fds, self.path)
        self.due = None

    def may_start_again(self) -> bool:
        """Whether it is worth another try: not where it was refused, nor where it goes on ending."""
        now, refused = (
            time.monotonic(),
            (UsageError.exit_code, DependencyUnavailable.exit_code, PolicyRefused.exit_code),
        )
        self.ends = [moment for moment in self.ends if now - moment < WITHIN]
        return self.command is not None and self.process.returncode not in refused and len(self.ends) < MAX_ENDS


def _open(
    command: list[str], environment: dict[str, str], fds: tuple[int, ...], path: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """A process that writes behind what its log holds, and where that ends. A log that has grown large is set aside first."""
    if path.exists() and path.stat().st_size > LARGE_LOG:
        path.replace(path.with_suffix(".old.log"))
    with path.open("ab") as log:
        path.chmod(0o600)
        start = log.tell()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            start_new_session=True,
        )
        return process, start


class _Address:
    """Where the API listens; the socket is bound before anything is started, so a taken port costs nothing."""

    def __init__(self, listener: socket.socket, host: str) -> None:
        self.listener = listener
        self.host = f"[{host}]" if ":" in host else host
        self.port: int = listener.getsockname()[1]


class _Stop:
    """Why the run ends: a signal, or a part that ended by itself for good."""

    def __init__(self) -> None:
        self.signalled = False
        self.was_ready = False  # until then a part that ends is not started again
        self.lost: _Part | None = None
        self.parts: list[_Part] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.signalled = True

    def check(self) -> bool:
        """Whether to stop now; starts again what ended by itself."""
        for part in self.parts:
            if self.lost is None and not self.signalled:
                self._look_after(part)
        return self.signalled or self.lost is not None

    def _look_after(self, part: _Part) -> None:
        now = time.monotonic()
        if part.due is not None:
            if now >= part.due:
                part.launch()
            return
        if part.process.poll() is None:
            return
        if not (self.was_ready and part.may_start_again()):
            self.lost = part
            return
        pause = min(PAUSE * 2 ** len(part.ends), MAX_PAUSE)
        part.ends.append(now)
        part.due = now + pause
        render.say(
            f"{part.name} ended by itself ({how_it_ended(part.process.returncode)}); it is started again in {pause:.1f} s. "
            f"Its log: {part.path}"
        )
        for line in _shown(part.log_lines()):
            render.say(f"  {line}")

    def wait(self) -> None:
        while not self.check():
            time.sleep(0.2)


def _prepare(
    stack: contextlib.ExitStack, settings: config.Settings, folder: Path, stop: _Stop
) -> tuple[_Address, dict[str, str], str, str]:
    """Port, lock, database, schema, keys, trust root; in the order in which a failure is cheapest."""
    from memory_layer.api import tls
    from memory_layer.api.serve import listen
    from memory_layer.ops import embedded, first_start, migrate
    from memory_layer.ops.data_folder import lock_data_folder

    first_start.check_settings(settings)
    tls.check(settings)
    if not settings.issues_tokens:
        first_start.token_keys(settings, folder)
    stack.enter_context(lock_data_folder(folder))
    listener = listen(settings.host, settings.port)
    stack.callback(listener.close)
    owner_dsn, dsn = settings.migrate_url, settings.database_url
    if dsn is None or owner_dsn is None:
        cluster = stack.enter_context(embedded.start(folder, on_step=render.say))
        stop.parts.append(_Part("Postgres", cluster.process))
        embedded.prepare_database(cluster)
        owner_dsn, dsn = cluster.dsn("memory_owner"), cluster.dsn("memory_app")
    applied = migrate.apply(owner_dsn, render.say)
    if settings.vector_db_provider == "pgvector":
        migrate.apply_pgvector(settings.vector_db_endpoint or owner_dsn)
    if applied:
        render.say(f"applied {len(applied)} migrations")
    first_start.ensure_keys(folder, settings.signer)
    opened = asyncio.run(first_start.start_log(settings, folder, dsn, owner_dsn))
    environment = dict(config.environment()) | {"DATABASE_URL": dsn, "MEMORY_DATA": str(folder)}
    return _Address(listener, settings.host), environment, opened.origin, opened.digest


def _start_children(
    stack: contextlib.ExitStack,
    folder: Path,
    environment: dict[str, str],
    stop: _Stop,
    listener: socket.socket,
    processes: int,
) -> None:
    """The API and the worker, each a process of its own: embedding text must not make requests wait."""
    logs = folder / "log"
    private.make_folder(logs)
    stack.callback(_end, stop)
    fd = str(listener.fileno())
    serve = ["serve", "--listen-fd", fd, "--processes", str(processes)]
    for name, extra, fds in (("api", serve, (listener.fileno(),)), ("worker", ["worker"], ())):
        command = [
            sys.executable,
            "-m",
            "memory_layer.cli",
            *extra,
            "--data",
            str(folder),
            "--parent",
            str(os.getpid()),
        ]
        path = logs / f"{name}.log"
        process, start = _open(command, environment, fds, path)
        stop.parts.append(_Part(name, process, command, environment, fds, path, start))


def _end(stop: _Stop) -> None:
    """All at once. Where a part is lost already, the others would wait for it needlessly: they get less time."""
    children = [part.process for part in stop.parts if part.command is not None]
    for child in children:
        child.terminate()
    deadline = time.monotonic() + (LOST_WITHIN if stop.lost else STOP_WITHIN)
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _await_ready(address: _Address, scheme: str, stop: _Stop) -> bool:
    """True once it answers; False when it is to stop before."""
    deadline = time.monotonic() + READY_WITHIN
    while not stop.check():
        if _ready(address, scheme):
            return True
        if time.monotonic() > deadline:
            raise DependencyUnavailable(
                f"the API was not ready within {READY_WITHIN:.0f} s. See its log in the data folder."
            )
        time.sleep(0.02)
    return False


def _ready(address: _Address, scheme: str) -> bool:
    host = address.host.strip("[]")
    if scheme == "https":
        # Our own process answers at a port that we bound; its certificate names the host that others use.
        unchecked = ssl._create_unverified_context()  # noqa: S323  # nosec B323
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, address.port, timeout=5, context=unchecked
        )
    else:
        connection = http.client.HTTPConnection(host, address.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        checks = json.loads(answer.read())["checks"]
        refused = checks.pop("rollback", None)
        if refused is not None and all(value == "ok" for value in checks.values()):
            render.say(f"warning: writes are refused ({refused}). See the API's log and docs/runbooks/rollback.md.")
            return True
        return answer.status == 200
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def _write_up_file(stack: contextlib.ExitStack, settings: config.Settings, folder: Path, address: str, dsn: str) -> str:
    """``up.json``: how the other commands of this machine find the running product. Readable by its owner alone.

    Where tokens are checked with another issuer's key, this one can make none: then the token is empty.
    """
    from memory_layer.model import SCOPES
    from memory_layer.ops import tokens

    token = ""
    if settings.issues_tokens:
        names = {"issuer": settings.jwt_issuer, "audience": settings.jwt_audience}
        token = tokens.issue(folder / "keys" / "jwt.pem", "shell", "default", SCOPES, TOKEN_DAYS * 86400, **names)
    path = folder / "up.json"
    draft = folder / ".up.json"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": address, "token": token, "pid": os.getpid(), "database": dsn}, file)
    draft.replace(path)
    stack.callback(path.unlink, missing_ok=True)
    return token


def _greet(address: str, token: str, folder: Path, origin: str, digest: str, seconds: float) -> None:
    render.say(f"ready in {seconds:.1f} s; data in {folder}")
    render.say(f"audit log {origin}, trust root sha256:{digest}")
    render.say(f"API {address}   docs {address}/docs   Ctrl-C stops it. In another terminal:\n")
    render.line(f"export MEMORY_URL={address}")
    render.line(f"export MEMORY_DATA={shlex.quote(str(folder))}")
    if token:
        render.line(f"export MEMORY_TOKEN={token}")
    else:
        render.say("JWT_JWKS_URL or JWT_PUBLIC_KEY is set: tokens come from its issuer, none is made here.")
