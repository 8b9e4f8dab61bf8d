"""What a directory store knows of an object besides its bytes: ``<root>/.state/<path of its file>~``, canonical JSON.

``{"version": 1, "sha256": ..., "size": ..., "hold": false, "lock": null}``. There is a file only where there is something to tell: a
name given by us (whose hash no file name holds), a lock, a hold, or an earlier version that was deleted. It is replaced in one step,
synced, under a lock that all processes share. ``~`` is in no key, so that no name of ours is another's folder.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memory_layer.errors import ObjectStoreUnavailable
from memory_layer.stores.objects.spool import create, discard, make_folders, sync_up
from memory_layer.stores.protocols import Lock

INCOMING, STATE, LOCKS = ".incoming", ".state", ".locks"
_STRIPES = 64


@dataclass(frozen=True, slots=True)
class State:
    """Of the version that is there, or of the next one when none is. ``sha256``, ``size``: of what has a name of ours."""

    version: int = 1
    sha256: str | None = None  # lower hex
    size: int | None = None  # bytes
    lock: Lock | None = None
    hold: bool = False


@contextlib.contextmanager
def alone(root: Path, relative: Path) -> Iterator[None]:
    """No other thread or process changes this object meanwhile. Blocks."""
    folder = root / LOCKS
    folder.mkdir(mode=0o700, exist_ok=True)
    stripe = zlib.crc32(os.fsencode(relative)) % _STRIPES
    handle = os.open(folder / f"{stripe:02d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and the lock with it


def read_state(root: Path, relative: Path) -> State:
    """Raises ObjectStoreUnavailable when it is damaged: an object whose locks cannot be read must not pass for unlocked."""
    path = _path(root, relative)
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return State()
    try:
        found = json.loads(text)
        lock = found["lock"]
        return State(
            int(found["version"]),
            found["sha256"],
            found["size"],
            None if lock is None else Lock(lock["mode"], dt.datetime.fromisoformat(lock["until"])),
            bool(found["hold"]),
        )
    except (ValueError, KeyError, TypeError):
        raise ObjectStoreUnavailable(f"{path} is damaged. Restore it from a backup.") from None


def write_state(root: Path, relative: Path, state: State) -> None:
    """Durable on return, the old one or the new one at any time."""
    path = _path(root, relative)
    lock = None if state.lock is None else {"mode": state.lock.mode, "until": state.lock.until.isoformat()}
    record = {"hold": state.hold, "lock": lock, "sha256": state.sha256, "size": state.size, "version": state.version}
    make_folders(path.parent)
    opened: list[tuple[int, Path]] = []
    try:
        create(root / INCOMING, opened)
        ((handle, temp),) = opened
        os.write(handle, json.dumps(record, separators=(",", ":"), sort_keys=True).encode())
        os.fsync(handle)
        temp.replace(path)
        sync_up(path.parent, root)
    finally:
        discard(opened)


def _path(root: Path, relative: Path) -> Path:
    return root / STATE / relative.parent / f"{relative.name}~"
