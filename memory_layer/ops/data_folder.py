"""The data folder of an installation on one machine: who owns it, who holds it, its room, what Postgres finds in it.

Postgres refuses to run as root, so under root its files belong to an unprivileged account and the data folder lets that
account pass through (mode 0711); for a plain user everything is theirs alone (0700). Nothing that
exists outside the data folder is ever changed.

The configuration of the embedded Postgres is written anew at each start into ``postgres-conf/``: beside PGDATA, not in
it, because under root PGDATA belongs to the database's account, and root must not write where another account could
have put a symbolic link. ``postgres/postgresql.conf`` is still read first, for settings of the operator's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_layer import private
from memory_layer.errors import DependencyUnavailable, LockHeld, UsageError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIN_FREE = 256 * 1024 * 1024
_ACCOUNT = "memory-layer"
_MARKS = ("lock", "postgres", "postgres.lock")
_LEFT_EMPTY = frozenset({"archive", "objects"})
_SOCKET_PATH_MAX = 103  # bytes of sun_path less the final NUL: Linux 107, macOS 103
_LOG_MAX = 16 * 1024 * 1024
Step = Callable[[str], None]

# Runs in PGDATA as `archive-wal.sh PATH NAME`. `ln` is the step that can neither overwrite nor be seen half done.
_ARCHIVE = """\
#!/bin/sh
# Keeps one finished segment of the write-ahead log: archive-wal.sh PATH NAME, run by Postgres in its data directory.
set -eu
kept="../wal-archive/$2"
same=none
if [ -e "$kept" ]; then
    same=no
    if cmp -s -- "$kept" "$1"; then same=yes; fi
elif [ -e "$kept.gz" ]; then
    same=no
    if gzip -dc -- "$kept.gz" | cmp -s - "$1"; then same=yes; fi
fi
# A crash between keeping a segment and noting it: the same bytes are success, others must never be overwritten.
if [ $same = yes ]; then exit 0; fi
if [ $same = no ]; then
    echo "archive-wal: $kept exists and holds other bytes than $1" >&2
    exit 1
fi
temp="../wal-archive/.$2.half.$$"
trap 'rm -f -- "$temp"' EXIT
# A segment that the timeout closed is mostly zeros, which gzip takes away. A full one holds vectors: there gzip saves a fifth,
# and under load costs more than a core, which is taken from the writes.
if [ -z "$(tail -c 4194304 -- "$1" | tr -d '\\000' | head -c 1)" ]; then
    target="$kept.gz"
    gzip -1nc -- "$1" > "$temp"
else
    target="$kept"
    cat -- "$1" > "$temp"
fi
sync -- "$temp"
ln -- "$temp" "$target"
sync -- ../wal-archive
"""

_DURABLE = """\
archive_mode = on
archive_command = 'sh ../postgres-conf/archive-wal.sh "%p" "%f"'
archive_timeout = 3600
max_wal_size = 4GB
"""

_FAST = """\
fsync = off
synchronous_commit = off
full_page_writes = off
archive_mode = off
max_wal_size = 1GB
"""


@dataclass(frozen=True, slots=True)
class Account:
    """The system account that the database runs as; ``switch`` says whether processes must change to it."""

    name: str
    uid: int
    gid: int
    switch: bool

    def popen_arguments(self) -> dict[str, Any]:
        """What ``subprocess`` needs to run as this account, without any of the caller's groups."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}


def default_data_folder() -> Path:
    """``~/.memory-layer``, or ``/var/lib/memory-layer`` for root, whose home other accounts cannot enter."""
    return Path("/var/lib/memory-layer") if os.geteuid() == 0 else Path.home() / ".memory-layer"


def database_account(on_step: Step | None = None) -> Account:
    """The caller, or under root ``memory-layer``, created when missing (``nobody`` where that is impossible)."""
    uid = os.geteuid()
    if uid != 0:
        try:
            return Account(pwd.getpwuid(uid).pw_name, uid, os.getegid(), switch=False)
        except KeyError:
            raise UsageError(
                f"User id {uid} has no entry in the user database, and Postgres needs one. "
                "Add one to /etc/passwd, or run as another user."
            ) from None
    for attempt in ("look up", "create"):
        try:
            found = pwd.getpwnam(_ACCOUNT)
        except KeyError:
            if attempt == "look up":
                _create_account()
        else:
            if found.pw_uid == 0:
                raise UsageError(f"The account {_ACCOUNT} is root under another name, and Postgres refuses root.")
            return Account(_ACCOUNT, found.pw_uid, found.pw_gid, switch=True)
    try:
        found = pwd.getpwnam("nobody")
    except KeyError:
        raise DependencyUnavailable(
            f"Postgres must not run as root, and there is neither an account {_ACCOUNT} nor one called nobody. "
            f"Create {_ACCOUNT}, or run as a plain user."
        ) from None
    if on_step:
        on_step(f"cannot create the account {_ACCOUNT}; the database runs as nobody")
    return Account("nobody", found.pw_uid, found.pw_gid, switch=True)


def prepare_data_folder(data: Path, on_step: Step | None = None) -> tuple[Path, Account]:
    """Create the folder or check it: (absolute path, account of the database).

    Raises UsageError when it belongs to somebody else, holds other things, or when the account cannot reach it.
    """
    account = database_account(on_step)
    data = Path(os.path.realpath(data))
    if account.switch:
        _require_reachable(data, account)
    mode = 0o711 if account.switch else 0o700
    try:
        for folder in reversed([data, *data.parents]):
            if not folder.exists():
                folder.mkdir(mode=mode, exist_ok=True)
                folder.chmod(mode)  # only what was made just now: mkdir heeds the umask
        if not data.is_dir():
            raise NotADirectoryError
        found = data.stat()
        if found.st_uid != os.geteuid():
            raise UsageError(
                f"The data folder {data} belongs to {_name(found.st_uid)}, not to {_name(os.geteuid())}. "
                "Run as its owner, or give another folder with --data."
            )
        if stat.S_IMODE(found.st_mode) != mode:
            names = {path.name for path in data.iterdir()}
            if names and not names.intersection(_MARKS) and not _only_leftovers(data, names):
                # Changing the mode of, say, /tmp or a home folder would harm others.
                raise UsageError(
                    f"{data} is not empty and not a data folder of the Memory Layer. Give a new folder with --data."
                )
            data.chmod(mode)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"The data folder {data} is, or lies under, a file. Give another with --data.") from None
    except OSError as error:
        raise unusable(data, error) from error
    return data, account


def _only_leftovers(data: Path, names: set[str]) -> bool:
    """Whether a folder holds no more than empty folders that a command of an older version left where nothing was ever started."""
    return names <= _LEFT_EMPTY and all(
        (data / name).is_dir() and not any((data / name).rglob("[!.]*")) for name in names
    )


def lock_data_folder(data: Path) -> io.FileIO:
    """Hold the data folder for this process until the handle is closed or the process ends. Raises LockHeld."""
    data, _ = prepare_data_folder(data)
    return hold(data / "lock", data)


def hold(path: Path, data: Path) -> io.FileIO:
    """An exclusive ``flock`` on ``path``; the file holds the holder's process id, for the message only."""
    try:
        handle = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+")
    except OSError as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        handle.truncate(0)
        handle.write(b"%d\n" % os.getpid())
    except BlockingIOError:
        with handle:
            pid = handle.read(20).decode("ascii", "replace").strip()
        raise LockHeld(
            f"The data folder {data} is in use by {'process ' + pid if pid else 'another process'}. "
            "Stop that one, or give another folder with --data."
        ) from None
    except OSError as error:
        handle.close()
        raise unusable(path, error) from error
    return handle


def check_free_space(data: Path, needed: int = MIN_FREE) -> None:
    """Raise DependencyUnavailable unless the file system of ``data`` has ``needed`` bytes for ordinary users."""
    folder = next(path for path in (data, *data.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DependencyUnavailable(
            f"{data} has {free / 2**20:.0f} MB free, and {needed / 2**20:.0f} MB are needed. "
            "Make room there, or give another folder with --data."
        )


def own_folder(path: Path, account: Account, mode: int = 0o700) -> None:
    """A folder directly in the data folder, created or corrected, that belongs to the account."""
    path.mkdir(mode=mode, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if account.switch and os.fstat(handle).st_uid != account.uid:
            # A volume that was used on another machine, where the account had another number.
            for _, folders, files, at in os.fwalk(".", dir_fd=handle):
                for name in (*folders, *files):
                    os.chown(name, account.uid, account.gid, dir_fd=at, follow_symlinks=False)
            os.fchown(handle, account.uid, account.gid)
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            os.fchmod(handle, mode)
    finally:
        os.close(handle)


def unusable(path: Path, error: OSError) -> DependencyUnavailable:
    """The one line for a folder or file that the system refuses."""
    return DependencyUnavailable(
        f"{error.filename or path}: {error.strerror or error}. Repair that, or give another folder with --data."
    )


def socket_folder(data: Path, account: Account, port: int) -> Path:
    """``run/``, or where its path cannot be a socket's a private folder under the system's temporary one.

    A socket's path is short, and clients read a comma in it as the end of one host and the start of the next.
    """
    name = f"/.s.PGSQL.{port}"
    inside = data / "run"
    if len(os.fsencode(inside)) + len(name) <= _SOCKET_PATH_MAX and "," not in str(inside):
        return inside
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:20]
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  # nosec B108: owner and mode are checked below
        folder = Path(parent) / f"memory-layer-{account.uid}-{digest}"
        if len(os.fsencode(folder)) + len(name) <= _SOCKET_PATH_MAX and "," not in str(folder):
            break
    else:
        raise UsageError(
            f"{data} cannot hold a socket (too long, or a comma in it), nor can the temporary folder. "
            "Give a shorter one with --data."
        )
    try:
        folder.mkdir(mode=0o700)
        created = True
    except FileExistsError:
        created = False
    try:
        # Never by name again: anybody who may write to the temporary folder could swap a symbolic link in.
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UsageError(f"{folder} is not a folder of {account.name}. Remove it, or give a shorter --data.") from error
    try:
        if created and account.switch:
            os.fchown(handle, account.uid, account.gid)
        found = os.fstat(handle)
        if found.st_uid != account.uid or stat.S_IMODE(found.st_mode) != 0o700:
            raise UsageError(
                f"{folder} is not a private folder of {account.name}. Remove it, or give a shorter --data."
            )
    finally:
        os.close(handle)
    return folder


def open_log(data: Path, account: Account) -> io.FileIO:
    """The folder stays the caller's; the file is the account's."""
    folder = data / "log"
    private.make_folder(folder)
    path = folder / "postgres.log"
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_MAX:
            path.rename(folder / "postgres.log.1")
    log = io.FileIO(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "a+")
    if account.switch:
        os.fchown(log.fileno(), account.uid, account.gid)
    return log


def write_config(data: Path, account: Account, socket_dir: Path, port: int, durable: bool) -> Path:
    """The path of ``postgresql.conf``. Raises DependencyUnavailable when a program that archiving needs is missing."""
    folder = data / "postgres-conf"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # mkdir heeds the umask
    if durable:
        missing = [name for name in ("gzip", "cmp", "sync", "ln") if not shutil.which(name, path=SYSTEM_PATH)]
        if missing:
            raise DependencyUnavailable(f"{' and '.join(missing)} must be installed: archiving the log needs it.")
    megabytes = min(_memory() // 4, 512 * 2**20) // 2**20 if durable else 64
    lines = [
        "# Written at each start. Settings of your own go to postgres/postgresql.conf; those below win.",
        "include_if_exists = '../postgres/postgresql.conf'",
        f"data_directory = {_quoted(data / 'postgres')}",
        f"hba_file = {_quoted(folder / 'pg_hba.conf')}",
        f"ident_file = {_quoted(folder / 'pg_ident.conf')}",
        "listen_addresses = ''",
        f"port = {port}",
        f"unix_socket_directories = {_quoted(_list_element(socket_dir))}",
        "unix_socket_permissions = 0700",
        "max_connections = 60",
        f"shared_buffers = {max(megabytes, 16)}MB",
        "jit = off",
        "wal_level = logical",
        _DURABLE.rstrip() if durable else _FAST.rstrip(),
        "logging_collector = off",
        "log_destination = stderr",
        "log_line_prefix = '%m [%p] '",
        "log_timezone = UTC",
        "timezone = UTC",
        "lc_messages = C",
    ]
    if _small_shared_memory():
        # The 64 MB that containers get are too few for a parallel index build.
        lines.append("dynamic_shared_memory_type = mmap")
    # Two barriers: the folder of the socket is 0700, and the kernel says who is at the other end.
    people = sorted({account.name, pwd.getpwuid(os.geteuid()).pw_name})
    _write(folder / "archive-wal.sh", _ARCHIVE)
    _write(folder / "pg_ident.conf", "".join(f'local_user "{name}" all\n' for name in people))
    _write(
        folder / "pg_hba.conf",
        "local all all peer map=local_user\nlocal replication all peer map=local_user\n"
        "host all all all reject\nhost replication all all reject\n",
    )
    path = folder / "postgresql.conf"
    _write(path, "\n".join(lines) + "\n")
    return path


def _create_account() -> None:
    useradd = shutil.which("useradd", path=SYSTEM_PATH)
    if useradd is None:
        return
    command = [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent"]
    # A failure (a read-only /etc, or another process that was quicker) shows in the look-up that follows.
    subprocess.run(
        [*command, "--shell", "/usr/sbin/nologin", "--user-group", _ACCOUNT],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def _require_reachable(data: Path, account: Account) -> None:
    """The kernel is asked, not the mode bits: access lists and mount options count too."""
    closed = _first_closed(_existing(data.parents), account)
    if closed is not None:
        raise UsageError(
            f"{closed} cannot be entered by {account.name}, the account that the database runs as under root. "
            f"Give a folder elsewhere, for example --data {default_data_folder()}, or run as a plain user."
        )


def _existing(parents: Any) -> Iterator[Path]:
    return (path for path in reversed(list(parents)) if path.exists())


def _first_closed(folders: Iterator[Path], account: Account) -> str | None:
    script = 'for d; do cd -- "$d" 2>/dev/null || { printf %s "$d"; exit 1; }; done'
    try:
        result = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *map(str, folders)],
            cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False, **account.popen_arguments(),
        )  # fmt: skip
    except OSError as error:
        raise DependencyUnavailable(
            f"Cannot start a process as {account.name} ({error.strerror}), and Postgres must not run as root. "
            "Run as a plain user."
        ) from error
    return os.fsdecode(result.stdout) if result.returncode else None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _write(path: Path, text: str) -> None:
    temp = path.with_name(f".{path.name}.new")
    temp.write_bytes(os.fsencode(text))
    temp.chmod(0o644)
    temp.rename(path)


def _quoted(value: object) -> str:
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


def _list_element(path: Path) -> str:
    """The list's own quotes keep a path with spaces whole."""
    return '"' + str(path).replace('"', '""') + '"'


def _memory() -> int:
    """Bytes that this machine, or this container, has."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
    except (OSError, ValueError):
        return total
    return min(total, limit)


def _small_shared_memory() -> bool:
    try:
        found = os.statvfs("/dev/shm")  # noqa: S108  # nosec B108: asked for its size only
    except OSError:
        return False
    return found.f_frsize * found.f_blocks < 256 * 2**20
