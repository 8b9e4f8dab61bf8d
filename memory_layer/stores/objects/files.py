"""Objects in a directory: ``<root>/<prefix>/<aa>/<sha256>``, ``aa`` the first two digits, for the key ``prefix/sha256``; what has a
name of ours lies under that name.

Bytes are collected under a temporary name in ``<root>/.incoming`` and appear under their own name in one step, complete and synced, or
never. A file that is there is never written again, unless it is damaged when the same bytes come once more. Locks and holds are in ``folder_state.py``. They bind this code only,
not a user who may write to the directory; the capabilities say so.
"""

from __future__ import annotations

import datetime as dt
import errno
import functools
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from memory_layer import private
from memory_layer.errors import Conflict, ObjectStoreUnavailable, ValidationError
from memory_layer.stores.objects import rules
from memory_layer.stores.objects.folder_listing import found_after
from memory_layer.stores.objects.folder_state import INCOMING, State, alone, read_state, write_state
from memory_layer.stores.objects.rules import Expected
from memory_layer.stores.objects.spool import (
    BLOCK,
    Spooled,
    Steps,
    create,
    discard,
    make_folders,
    spooled,
    sweep,
    sync_up,
)
from memory_layer.stores.protocols import (
    Damage,
    Lock,
    ObjectCapabilities,
    ObjectPage,
    ObjectState,
    ObjectVersion,
    StoredObject,
)
from memory_layer.telemetry.logs import get_logger

_THREADS: Final = 4
_PROBE: Final = 64 * 1024  # bytes
log = get_logger("memory_layer.objects")

_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class FileStore:
    """The ``ObjectStore`` of one machine. Any number of processes may use one root."""

    root: Path
    steps: Steps
    name: str = "local"
    eraser: bool = False  # may delete

    @property
    def url_prefix(self) -> str:
        # Not the path: where a server keeps its files is nobody else's business.
        return f"object://{self.name}/"

    @property
    def capabilities(self) -> ObjectCapabilities:
        return ObjectCapabilities(enforces_locks=False, links=False, cold=False)

    async def put(
        self,
        prefix: str,
        chunks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        expected_size: int | None = None,
        max_bytes: int | None = None,
        lock: Lock | None = None,
        hold: bool = False,
    ) -> StoredObject:
        """As the Protocol says. Cancelled, it leaves nothing, unless the object already stood under its name.

        Such an object stays: another upload of the same bytes may count on it by then.
        """
        rules.check_prefix(prefix)
        lock = rules.whole_or_none(lock)
        expected = Expected(expected_sha256, expected_size, max_bytes)
        async with spooled(self.steps, self.root / INCOMING, chunks, expected, _finish) as body:
            key = f"{prefix}/{body.sha256}"
            return await self.steps.run(_publish, self.root, key, body, lock, hold)

    async def put_named(
        self, key: str, chunks: AsyncIterator[bytes], *, lock: Lock | None = None, hold: bool = False
    ) -> StoredObject:
        """As the Protocol says."""
        rules.check_name(key)
        lock = rules.whole_or_none(lock)
        async with spooled(self.steps, self.root / INCOMING, chunks, Expected(), _finish) as body:
            return await self.steps.run(_publish, self.root, key, body, lock, hold)

    async def read(
        self, key: str, version_id: str, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """As the Protocol says, in blocks of at most 1 MiB. A range beyond the end is cut short."""
        if start < 0 or (stop is not None and stop < 0):
            raise ValueError("start and stop count from the beginning")
        relative = _relative(key)
        opened: list[int] = []
        try:
            await self.steps.run(_open, self.root, key, relative, version_id, opened)
            (handle,) = opened
            while stop is None or start < stop:
                wanted = BLOCK if stop is None else min(BLOCK, stop - start)
                block = await self.steps.run(os.pread, handle, wanted, start)
                if not block:
                    return
                start += len(block)
                yield block
        finally:
            for handle in opened:
                os.close(handle)

    async def stat(self, key: str, version_id: str | None = None) -> ObjectState:
        """As the Protocol says; ``sha256`` is the one that was stored, whatever has become of the bytes."""
        return await self.steps.run(_stat, self.root, key, _relative(key), version_id)

    async def versions(self, prefix: str, cursor: str | None = None, limit: int = 1000) -> ObjectPage:
        """As the Protocol says; a key has one version at a time. The cursor is the last key."""
        rules.check_listing(prefix)
        return await self.steps.run(_list, self.root, prefix, cursor or "", max(1, limit))

    async def set_hold(self, key: str, version_id: str, held: bool) -> None:
        """As the Protocol says, without a tag: there is no lifecycle here to filter on it."""
        await self.steps.run(_set_hold, self.root, key, _relative(key), version_id, held)

    async def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        whole = rules.whole_lock(lock, dt.datetime.now(dt.UTC))
        await self.steps.run(_extend_lock, self.root, key, _relative(key), version_id, whole)

    async def delete(self, key: str, version_id: str) -> None:
        """As the Protocol says. The next version of the key has another id, so that no old reference finds new bytes."""
        if not self.eraser:
            raise rules.not_eraser("Purges and erasure open their own.")
        await self.steps.run(_delete, self.root, key, _relative(key), version_id)

    async def restore(self, key: str, version_id: str, days: int) -> None:  # noqa: ARG002 - the seam's own
        """Nothing is ever cold here. Raises NotFound."""
        await self.stat(key, version_id)

    def link(
        self,
        key: str,  # noqa: ARG002 - this and what follows: the seam's own
        version_id: str,  # noqa: ARG002
        seconds: int,  # noqa: ARG002
        *,
        name: str | None,  # noqa: ARG002
        content_type: str,  # noqa: ARG002
    ) -> str | None:
        """None: who wants the bytes asks the API."""
        return None

    def locate(self, url: str) -> tuple[str, str | None] | None:
        return rules.located(url, (self.url_prefix,))

    async def ping(self) -> None:
        """Raise ObjectStoreUnavailable unless a file can be made and filled here now: a full disk still takes empty ones."""

        def probe() -> None:
            opened: list[tuple[int, Path]] = []
            try:
                create(self.root / INCOMING, opened)
                left = memoryview(bytes(_PROBE))
                while left:
                    left = left[os.write(opened[0][0], left) :]
            finally:
                discard(opened)

        await self.steps.run(probe)

    async def close(self) -> None:
        self.steps.threads.shutdown(wait=False)


def open_file_store(root: Path, name: str = "local", *, eraser: bool = False) -> FileStore:
    """Open or create the root and sweep what killed uploads left. Raises ObjectStoreUnavailable."""
    root = Path(os.path.realpath(root))
    try:
        private.make_folder(root)
        private.make_folder(root / INCOMING)
        for folder in root.iterdir():  # those of tenants, and our own; what lies in them cannot be reached any more
            private.tighten(folder)
        sweep(root / INCOMING)
    except OSError as error:
        raise _unavailable(root, error) from error
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
    return FileStore(root, Steps(threads, functools.partial(_failed, root)), name, eraser)


def _relative(key: str) -> Path:
    sha256 = rules.addressed(key)
    return Path(key) if sha256 is None else Path(key).parent / sha256[:2] / sha256


def _failed(root: Path, error: OSError) -> ObjectStoreUnavailable:
    """For callers, who are not shown where things lie; the log is."""
    log.error("the object store failed", path=str(error.filename or root), error=error.strerror or str(error))
    return ObjectStoreUnavailable(
        f"The object store failed: {error.strerror or error}. Check the disk and the permissions of the folder objects/ of the data "
        "folder, then retry."
    )


def _unavailable(path: Path, error: OSError) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(
        f"The object store in {path} failed: {error.strerror or error}. Check its disk and permissions, then retry."
    )


def _finish(handle: int) -> None:
    os.fchmod(handle, 0o400)
    os.fsync(handle)


def _publish(root: Path, key: str, body: Spooled, lock: Lock | None, hold: bool) -> StoredObject:
    """Give the bytes their name, after what is known of them."""
    relative = _relative(key)
    final = root / relative
    named = rules.addressed(key) is None
    try:
        make_folders(final.parent)
    except (FileExistsError, NotADirectoryError):
        raise Conflict(f"The name {key} goes on where another object's name ends. Choose another.") from None
    with alone(root, relative):
        old = read_state(root, relative)
        if final.is_dir():
            raise Conflict(f"The name {key} ends where those of other objects go on. Choose another.")
        if named and final.exists() and _hash_of(final, old) != body.sha256:
            raise rules.taken(key)
        new = replace(old, lock=rules.longest(old.lock, lock, dt.datetime.now(dt.UTC)), hold=old.hold or hold)
        if named:
            new = replace(new, sha256=body.sha256, size=body.size)
        if new != old:
            write_state(root, relative, new)  # first: no moment in which the bytes are there and unlocked
        damage = None if _link(body.path, final) else _repair(final, body, str(new.version))
        sync_up(final.parent, root)
    if damage is not None:
        rules.say_repaired(key, damage)
    return StoredObject(key, str(new.version), body.sha256, body.size, damage)


def _link(temp: Path, final: Path) -> bool:
    """Whether the bytes have their name now; False where a file has it already, which is never overwritten unread."""
    try:
        os.link(temp, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if final.exists():
            return False
        temp.rename(final)  # a file system without links
    return True


def _repair(final: Path, body: Spooled, version: str) -> Damage | None:
    """Read a file that should hold these bytes; where it does not, they take its place in one step. Its name, lock and hold say what
    its bytes are to be, so this gives them back what they protect."""
    handle = os.open(final, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        try:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            sha256 = "0" * 64  # the disk does not give the bytes any more
        size = os.fstat(handle).st_size
    if (sha256, size) == (body.sha256, body.size):
        return None
    body.path.replace(final)
    return Damage(version, sha256, size, replaced=True)


def _hash_of(final: Path, state: State) -> str:
    if state.sha256 is not None:
        return state.sha256
    with final.open("rb") as file:  # what is known of it was lost
        return hashlib.file_digest(file, "sha256").hexdigest()


def _present(root: Path, key: str, relative: Path, version_id: str | None) -> tuple[State, os.stat_result]:
    """Raises NotFound unless this version is there."""
    state = read_state(root, relative)
    if version_id is not None and version_id != str(state.version):
        raise rules.no_version(key, version_id)
    try:
        about = (root / relative).stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise _gone(root, key) from None
    if not stat.S_ISREG(about.st_mode):
        raise rules.no_object(key)
    return state, about


def _gone(root: Path, key: str) -> Exception:
    if not (root / INCOMING).is_dir():  # not one object but the whole store is away, say an unmounted disk
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return rules.no_object(key)


def _open(root: Path, key: str, relative: Path, version_id: str, opened: list[int]) -> None:
    _present(root, key, relative, version_id)
    try:
        opened.append(os.open(root / relative, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        raise _gone(root, key) from None


def _stat(root: Path, key: str, relative: Path, version_id: str | None) -> ObjectState:
    state, about = _present(root, key, relative, version_id)
    return ObjectState(
        key=key,
        version_id=str(state.version),
        size=about.st_size,
        sha256=rules.addressed(key) or state.sha256,
        lock=state.lock,
        hold=state.hold,
        shadowed=False,
        storage_class="STANDARD",
    )


def _list(root: Path, prefix: str, after: str, limit: int) -> ObjectPage:
    versions: list[ObjectVersion] = []
    for key, path in found_after(root, prefix, after):
        try:
            about = (root / path).stat(follow_symlinks=False)
            rules.addressed(key)
        except (FileNotFoundError, ValidationError):
            continue  # deleted meanwhile, or no object: somebody else's file
        if len(versions) == limit:
            return ObjectPage(versions, versions[-1].key)
        modified = dt.datetime.fromtimestamp(about.st_mtime, dt.UTC)
        version = str(read_state(root, path).version)
        versions.append(ObjectVersion(key, version, about.st_size, True, False, modified))
    return ObjectPage(versions, None)


def _set_hold(root: Path, key: str, relative: Path, version_id: str, held: bool) -> None:
    with alone(root, relative):
        state, _ = _present(root, key, relative, version_id)
        if state.hold != held:
            write_state(root, relative, replace(state, hold=held))


def _extend_lock(root: Path, key: str, relative: Path, version_id: str, lock: Lock) -> None:
    with alone(root, relative):
        state, _ = _present(root, key, relative, version_id)
        rules.check_extension(state.lock, lock, dt.datetime.now(dt.UTC))
        if state.lock != lock:
            write_state(root, relative, replace(state, lock=lock))


def _delete(root: Path, key: str, relative: Path, version_id: str) -> None:
    with alone(root, relative):
        state, _ = _present(root, key, relative, version_id)
        rules.check_deletable(key, state.lock, state.hold, dt.datetime.now(dt.UTC))
        # The bytes first: were the version counted up and the process killed, nobody would look for them again.
        (root / relative).unlink()
        sync_up((root / relative).parent, root)
        write_state(root, relative, State(state.version + 1))
