"""Bytes on their way in: a file of ours that is locked while it is in use, hashed as it grows, gone afterwards whatever happens.

The whole body lies there before an object is made of it: the key is made of its SHA-256, which is known at the end only, and what does
not have the announced hash or size is refused. Who knows the key before may follow the file while it grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from memory_layer.stores.objects.rules import Expected

SPARE = 64 * 1024 * 1024  # bytes of the disk that bodies on their way in leave alone; of a small one a twentieth
BLOCK = 1024 * 1024  # bytes per step into a thread: what one upload or download holds in memory

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Steps:
    """Blocking work in a bounded number of threads; ``explain`` gives an OSError's caller the store's own error."""

    threads: ThreadPoolExecutor
    explain: Callable[[OSError], Exception]

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a thread. A cancelled caller still waits for the step, which uses a file that is closed afterwards."""
        step = asyncio.ensure_future(
            asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))
        )
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            await _ended(step)
            raise
        except OSError as error:
            raise self.explain(error) from error


async def _ended(step: asyncio.Future[T]) -> None:
    """Wait for it whatever happens, for it uses what is closed next. Its error is left to who awaits it."""
    while not step.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([step])
    if not step.cancelled():
        step.exception()  # retrieved


@dataclass(frozen=True, slots=True)
class Spooled:
    """A whole body. ``handle`` is open for reading and writing, its offset at the end."""

    handle: int
    path: Path
    sha256: str
    size: int


class Growing:
    """How much of a body lies in its file so far, for those who follow it."""

    def __init__(self, handle: int, size: int = 0, *, whole: bool = False) -> None:
        self.handle, self.size, self.whole = handle, size, whole
        self._more = asyncio.Event()

    def grew(self, count: int, *, whole: bool = False) -> None:
        self.size += count
        self.whole = whole
        more, self._more = self._more, asyncio.Event()
        more.set()

    async def reached(self, size: int) -> int:
        """How many bytes there are, once there are so many, or all."""
        while self.size < size and not self.whole:
            await self._more.wait()
        return self.size


@contextlib.asynccontextmanager
async def spooled(
    steps: Steps,
    folder: Path,
    chunks: AsyncIterator[bytes],
    expected: Expected,
    finish: Callable[[int], None] | None = None,
    meanwhile: Callable[[Growing], Coroutine[Any, Any, None]] | None = None,
) -> AsyncIterator[Spooled]:
    """The body in a file of ``folder``. ``finish`` is called in a thread with the handle, once all bytes are written.

    ``meanwhile`` runs while the file grows, and has ended when the body is given; when it fails, so does this, at the next block.
    Raises what ``expected`` raises, what ``chunks`` and ``meanwhile`` raise, and for an OSError what ``steps.explain`` makes of it.
    """
    expected.begin()
    opened: list[tuple[int, Path]] = []  # filled in the thread: a caller cancelled meanwhile must still close it
    writing: asyncio.Future[None] | None = None
    following: asyncio.Future[None] | None = None
    try:
        await steps.run(create, folder, opened)
        ((handle, path),) = opened
        digest, size, waiting = hashlib.sha256(), 0, bytearray()
        growing = Growing(handle)
        if meanwhile is not None:
            following = asyncio.ensure_future(meanwhile(growing))

        async def append(block: bytearray) -> None:
            # Two threads, for either takes as long as the other: reading the body must not wait for their sum.
            await asyncio.gather(steps.run(digest.update, block), steps.run(_write, handle, block))
            growing.grew(len(block))

        async for chunk in chunks:
            size += len(chunk)
            expected.so_far(size)
            for start in range(0, len(chunk), BLOCK):
                waiting += chunk[start : start + BLOCK]
                if len(waiting) >= BLOCK:
                    if writing is not None:
                        await writing
                    if following is not None and following.done():
                        following.result()
                    # One block is hashed and written while the next one comes.
                    writing = asyncio.ensure_future(append(waiting))
                    waiting = bytearray()
        if writing is not None:
            await writing
        sha256 = await steps.run(_finish, handle, digest, waiting, finish)
        expected.end(sha256, size)
        growing.grew(len(waiting), whole=True)
        if following is not None:
            await following
        yield Spooled(handle, path, sha256, size)
    finally:
        try:
            if following is not None:
                following.cancel()
            for used in (writing, following):
                if used is not None:
                    await _ended(used)
        finally:
            discard(opened)


def create(folder: Path, opened: list[tuple[int, Path]]) -> None:
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
                discard([(handle, path)])


def discard(opened: list[tuple[int, Path]]) -> None:
    for handle, temp in opened:
        with contextlib.suppress(OSError):  # what cannot be removed now goes with the sweep at the next start
            temp.unlink()
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what killed processes left; what a living one uses stays."""
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


def make_folders(folder: Path) -> None:
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def sync_up(folder: Path, root: Path) -> None:
    """Make the names in ``folder`` and above durable, up to the root, and even when all were there: another process that made them may not
    have synced them yet."""
    while True:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if folder == root:
            return
        folder = folder.parent


def _write(handle: int, block: bytearray) -> None:
    # On many installations the database shares this disk, and it does not survive a full one.
    found = os.fstatvfs(handle)
    spare = min(SPARE, found.f_blocks * found.f_frsize // 20)
    if found.f_bavail * found.f_frsize < spare + len(block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _finish(handle: int, digest: hashlib._Hash, block: bytearray, finish: Callable[[int], None] | None) -> str:
    digest.update(block)
    _write(handle, block)
    if finish is not None:
        finish(handle)
    return digest.hexdigest()
