"""Objects in a directory: ``<root>/<prefix>/<aa>/<sha256>``, ``aa`` the first two digits; the key is ``prefix/sha256``.

Bytes are collected under a temporary name in ``<root>/.incoming`` and appear under their own name in one step, complete
and synced, or never. A file that is there is never written again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from memory_layer.errors import ChecksumMismatch, NotFound, ObjectStoreUnavailable, PayloadTooLarge, ValidationError
from memory_layer.stores.protocols import StoredObject

_BLOCK = 1024 * 1024  # bytes per step into a thread: what one upload or download holds in memory
_THREADS = 4
_INCOMING = ".incoming"
_VERSION = "1"  # content-addressed: a key has one version for ever
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@=+-]*(?:/[A-Za-z0-9][A-Za-z0-9._:@=+-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileStore:
    """The ``ObjectStore`` of one machine. Any number of processes may use one root."""

    root: Path
    threads: ThreadPoolExecutor

    @property
    def url_prefix(self) -> str:
        # Not the path: where a server keeps its files is nobody else's business.
        return "object://local/"

    async def put(
        self,
        prefix: str,
        chunks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        max_bytes: int | None = None,
    ) -> StoredObject:
        """As the Protocol says. Cancelled, it leaves nothing, unless the object already stood under its name.

        Such an object stays: another upload of the same bytes may count on it by then.
        """
        _check_prefix(prefix)
        opened: list[tuple[int, Path]] = []  # filled in the thread: a caller cancelled meanwhile must still close it
        try:
            await self._run(_create, self.root / _INCOMING, opened)
            ((handle, temp),) = opened
            digest, size, waiting = hashlib.sha256(), 0, bytearray()
            async for chunk in chunks:
                size += len(chunk)
                if max_bytes is not None and size > max_bytes:
                    raise PayloadTooLarge(f"The bytes exceed the limit of {max_bytes} bytes. Send fewer, or in parts.")
                for start in range(0, len(chunk), _BLOCK):
                    waiting += chunk[start : start + _BLOCK]
                    if len(waiting) >= _BLOCK:
                        await self._run(_append, handle, digest, waiting)
                        waiting = bytearray()
            sha256 = await self._run(_finish, handle, digest, waiting)
            if expected_sha256 is not None and expected_sha256.lower() != sha256:
                raise ChecksumMismatch(
                    f"The bytes have SHA-256 {sha256}, not the announced {expected_sha256}. Nothing was kept."
                )
            await self._run(_publish, self.root, temp, prefix, sha256, size)
        finally:
            _discard(opened)
        return StoredObject(f"{prefix}/{sha256}", _VERSION, sha256, size)

    async def read(
        self, key: str, version_id: str, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """As the Protocol says, in blocks of at most 1 MiB. A range beyond the end is cut short."""
        if start < 0 or (stop is not None and stop < 0):
            raise ValueError("start and stop count from the beginning")
        relative = _relative(key)
        if version_id != _VERSION:
            raise NotFound(f"There is no version {version_id} of the object {key}.")
        opened: list[int] = []
        try:
            await self._run(_open, self.root, relative, opened)
            (handle,) = opened
            while stop is None or start < stop:
                block = await self._run(os.pread, handle, _BLOCK if stop is None else min(_BLOCK, stop - start), start)
                if not block:
                    return
                start += len(block)
                yield block
        finally:
            for handle in opened:
                os.close(handle)

    async def ping(self) -> None:
        """Raise ObjectStoreUnavailable unless a file can be made here now."""

        def probe() -> None:
            opened: list[tuple[int, Path]] = []
            _create(self.root / _INCOMING, opened)
            _discard(opened)

        await self._run(probe)

    async def close(self) -> None:
        self.threads.shutdown(wait=False)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a thread. A cancelled caller still waits for the step, which uses a file that is closed afterwards."""
        step = asyncio.ensure_future(
            asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))
        )
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            while not step.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([step])
            if not step.cancelled():
                step.exception()  # retrieved: the cancellation is what the caller gets
            raise
        except OSError as error:
            raise _unavailable(self.root, error) from error


def open_file_store(root: Path) -> FileStore:
    """Open or create the root and sweep what killed uploads left. Raises ObjectStoreUnavailable."""
    root = Path(os.path.realpath(root))
    try:
        (root / _INCOMING).mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(root / _INCOMING)
    except OSError as error:
        raise _unavailable(root, error) from error
    return FileStore(root, ThreadPoolExecutor(_THREADS, thread_name_prefix="objects"))


def _check_prefix(prefix: str) -> None:
    if len(prefix) > 512 or not _PREFIX.fullmatch(prefix) or any(map(_SHA256.fullmatch, prefix.split("/"))):
        raise ValidationError(
            f"{prefix[:80]!r} cannot be a prefix of object keys: it takes parts of letters, digits and ._:@=+- "
            "that begin with a letter or digit, joined by /, at most 512 characters."
        )


def _relative(key: str) -> Path:
    prefix, _, sha256 = key.rpartition("/")
    if not _SHA256.fullmatch(sha256):
        raise ValidationError(f"{key[:80]!r} is not an object key: it must end with a SHA-256 in lower hex.")
    _check_prefix(prefix)
    return Path(prefix, sha256[:2], sha256)


def _unavailable(path: Path, error: OSError) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(
        f"The object store in {path} failed: {error.strerror or error}. Check its disk and permissions, then retry."
    )


def _create(folder: Path, opened: list[tuple[int, Path]]) -> None:
    """Add a new file, locked for as long as it is open, which tells a sweep that it is in use."""
    while not opened:
        path = folder / uuid.uuid4().hex
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:  # else a sweep came between the two calls above
                opened.append((handle, path))
        finally:
            if not opened:
                _discard([(handle, path)])


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # a living upload, of this process or of another
        finally:
            os.close(handle)


def _append(handle: int, digest: hashlib._Hash, block: bytearray) -> None:
    digest.update(block)
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _finish(handle: int, digest: hashlib._Hash, block: bytearray) -> str:
    _append(handle, digest, block)
    os.fchmod(handle, 0o440)
    os.fsync(handle)
    return digest.hexdigest()


def _publish(root: Path, temp: Path, prefix: str, sha256: str, size: int) -> None:
    final = root / prefix / sha256[:2] / sha256
    _make_folders(final.parent)
    try:
        os.link(temp, final)  # never overwrites
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not final.exists():
            temp.rename(final)  # a file system without links; if another upload was quicker, it wrote these same bytes
    found = final.stat().st_size
    if found != size:
        raise ObjectStoreUnavailable(
            f"{final} is damaged: it has {found} bytes, and the object of that name {size}. Restore it from a backup."
        )
    # Up to the root, and even when all were there: whoever made them may not have synced them yet.
    folder = final.parent
    while True:
        _sync(folder)
        if folder == root:
            return
        folder = folder.parent


def _make_folders(folder: Path) -> None:
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(opened: list[tuple[int, Path]]) -> None:
    for handle, temp in opened:
        with contextlib.suppress(OSError):  # what cannot be removed now goes with the sweep at the next start
            temp.unlink()
        os.close(handle)


def _open(root: Path, relative: Path, opened: list[int]) -> None:
    try:
        opened.append(os.open(root / relative, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except (FileNotFoundError, NotADirectoryError):
        if not (root / _INCOMING).is_dir():  # not one object but the whole store is away, say an unmounted disk
            raise
        raise NotFound(f"The object {relative.name} is gone from the object store.") from None
