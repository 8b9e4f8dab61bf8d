"""One installation as this process has it open: the first parameter of every use case and of every operation.

A part (the database, the index, the log's writer, ...) is opened by ``need`` when something first asks for it, and closed with the
installation, in reverse. Vendors' libraries are loaded with the part that needs them. To add a part: its name and type on
``Installation``, and a line in ``_OPENERS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from memory_layer.audit.trust_root import TrustRoot
from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError, UsageError
from memory_layer.model import Namespace, VectorRow
from memory_layer.progress import Progress, no_progress
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.block_hashes import Blocks
from memory_layer.service.commit import Committer
from memory_layer.service.commit.transaction import SIGNER_TIMEOUT
from memory_layer.service.rollback import RollbackGuard
from memory_layer.service.rollback_watch import record_change
from memory_layer.service.sealed import SealedBatches
from memory_layer.service.verification import Verdicts
from memory_layer.service.waiting import Waits
from memory_layer.service.witnesses import FOLDER, Witnesses
from memory_layer.service.word_writer import WordWriter
from memory_layer.stores.batch_rows import JobDecision
from memory_layer.stores.breakers import Breakers
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.logs import find_log, find_trust_root, read_trust_root
from memory_layer.stores.postgres import Postgres, open_postgres
from memory_layer.stores.protocols import (
    AnchorPlace,
    Embedder,
    JoinedVectors,
    Notifier,
    ObjectStore,
    Signer,
    VectorStore,
)
from memory_layer.telemetry.logs import get_logger

logger = get_logger("memory_layer.installation")


class Installation:
    """Settings, the data folder, the parts that were opened, and what this process remembers between two requests.

    A part that was not opened raises AttributeError, which is a mistake of the code that reads it: the code that starts the work opens
    what the work needs.
    """

    # Parts.
    trust_root: TrustRoot  # whose seals count, as the data folder had it when it was read
    postgres: Postgres
    log: int  # the number of the log that the trust root names
    keys: KeyRing  # that this process may seal the log with
    guard: RollbackGuard
    committer: Committer  # the only writer of what is audited. Wakes workers where ``notifier`` is open
    vectors: VectorStore
    joined: JoinedVectors | None  # ``vectors``, where it lies in the canonical database
    objects: ObjectStore
    archive: ObjectStore  # of the audit log; manifests and snapshots too
    outside: ObjectStore | MemoryLayerError | None  # the archive for one who only reads, and makes no folder for it
    eraser: ObjectStore  # what may delete objects; opening it raises Forbidden without credentials for it
    anchors: tuple[AnchorPlace, ...]  # where checkpoints are sent to
    embedder: Embedder | None
    next_embedder: Embedder | None  # of the model that namespaces are moved to, or from
    checkpoint_signer: Signer | None  # None: this process publishes no checkpoints
    notifier: Notifier

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        pool: int = 2,
        say: Callable[[str], None] = logger.info,
        progress: Progress = no_progress,
        seals: bool = True,
    ) -> None:
        """``folder``: the data folder. ``pool``: connections to Postgres, and to the index. ``say`` and ``progress``: for a person who
        waits. ``seals``: whether these settings are those that the log is sealed by; else the entries of runs are owed, and the worker
        writes them."""
        self.settings = settings
        self.folder = folder
        self.pool = pool
        self.say = say
        self.progress = progress
        self.seals = seals
        # Indexes due rows in this process and says how many; None: that is a worker's business.
        self.work: Callable[[], Awaitable[int]] | None = None
        self.breakers = Breakers()
        self.verdicts = Verdicts()  # nodes that this process has found right lately
        # Namespaces by (tenant, name), as searches last saw them; each search that trusts one checks it before it answers.
        self.seen: dict[tuple[str, str], Namespace] = {}
        self.refused: dict[uuid.UUID, float] = {}  # nodes whose expiry was refused as TAMPERED, and when
        self.waits = Waits()
        self.blocks = Blocks()  # hashes of the blocks of files, as they were when they were right
        self.words: WordWriter | None = None  # a process of the service writes the words of what it commits
        self.warming: asyncio.Task[int] | None = None  # until it is done the first searches are slow
        self._parts = contextlib.AsyncExitStack()
        self._opening: dict[str, asyncio.Lock] = {}

    async def need(self, *parts: str) -> Self:
        """Open these parts, and those that they rest on, where they are not open yet. A part that another task is opening is waited for, and
        opened anew if that fails. Raises what opening raises, with what is missing and what to do."""
        for part in parts:
            if part not in self.__dict__:
                # No part rests on one that rests on it, so nobody waits in a circle.
                async with self._opening.setdefault(part, asyncio.Lock()):
                    await self._open(part)
        return self

    async def _open(self, part: str) -> None:
        if part in self.__dict__:
            return
        opened = await _OPENERS[part](self)
        setattr(self, part, opened)
        for each in opened if isinstance(opened, tuple) else (opened,):
            if hasattr(each, "close") and part != "joined":  # which is ``vectors``
                self._parts.push_async_callback(each.close)

    def is_open(self, part: str) -> bool:
        return part in self.__dict__

    async def close(self) -> None:
        """What is waiting for its commit is committed first. What is needed afterwards is opened again."""
        await self._parts.aclose()
        for part in _OPENERS:
            self.__dict__.pop(part, None)

    def with_parts(self, **parts: Any) -> Self:
        """The same installation with other parts; it is closed with the original."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _parts=contextlib.AsyncExitStack(), _opening={}, **parts)
        return other

    @property
    def dsn(self) -> str:
        """Of the database. Raises UsageError where there is none."""
        return self.settings.database

    @property
    def sealed(self) -> SealedBatches:
        """Batches of the log whose seals this process has checked."""
        return self.committer.sealed

    @property
    def embedders(self) -> list[Embedder]:
        """All that this process can embed by."""
        return [embedder for embedder in (self.embedder, self.next_embedder) if embedder is not None]

    def embedder_of(self, model: str | None, dimension: int | None) -> Embedder | None:
        """The one that makes vectors of this model and dimension."""
        return next((e for e in self.embedders if (e.model, e.dimension) == (model, dimension)), None)

    @property
    def space(self) -> EmbeddingSpace:
        """Where text without a vector goes."""
        embedder, provider = self.embedder, self.vectors.provider
        also = tuple((other.model, other.dimension) for other in self.embedders if other is not embedder)
        if embedder is None:
            return EmbeddingSpace(provider, None, None, also)
        return EmbeddingSpace(provider, embedder.model, embedder.dimension, also)


@contextlib.asynccontextmanager
async def open_installation(
    settings: Settings, folder: Path, *parts: str, pool: int = 2
) -> AsyncIterator[Installation]:
    """An installation with these parts open, closed on the way out. Raises what opening raises."""
    installation = Installation(settings, folder, pool=pool)
    try:
        yield await installation.need(*parts)
    finally:
        await installation.close()


async def open_guard(installation: Installation, trust_root: TrustRoot, log: int) -> RollbackGuard:
    """Once it has looked. An operator's command goes on where the archive cannot be opened."""
    await installation.need("postgres", "anchors", *([] if installation.is_open("archive") else ["outside"]))
    archive = installation.archive if installation.is_open("archive") else installation.outside
    witnesses = Witnesses(trust_root, archive, installation.anchors, installation.folder / FOLDER)
    guard = RollbackGuard(installation.postgres, log, witnesses)
    await guard.check()
    return guard


async def _open_trust_root(self: Installation) -> TrustRoot:
    return await asyncio.to_thread(read_trust_root, self.folder)


async def _open_postgres(self: Installation) -> Postgres:
    # Without a trust root here (an operator's own machine) the rows are the same; it is only not known which log is theirs.
    trust_root = await asyncio.to_thread(find_trust_root, self.folder)
    return await open_postgres(self.dsn, size=self.pool, origin=None if trust_root is None else trust_root.origin)


async def _open_log(self: Installation) -> int:
    await self.need("trust_root", "postgres")
    return await find_log(self.postgres, self.trust_root.origin)


async def _open_keys(self: Installation) -> KeyRing:
    from memory_layer.stores.signers import open_signers

    settings, folder = self.settings, self.folder
    return KeyRing(await open_signers(settings, folder), lambda: open_signers(settings, folder))


async def _open_guard(self: Installation) -> RollbackGuard:
    await self.need("trust_root", "log")
    return await open_guard(self, self.trust_root, self.log)


async def _open_committer(self: Installation) -> Committer:
    await self.need("keys", "log", "guard")
    writer = LogWriter(self.dsn, SIGNER_TIMEOUT, LogGuard(self.trust_root, self.folder))
    committer = Committer(writer, self.keys, partial(_committed, self), self.guard)
    try:
        await record_change(self.guard, self.postgres, committer)
    except BaseException:
        await committer.close()
        raise
    return committer


def _committed(self: Installation, records: Sequence[Any]) -> None:
    """Wake the workers for what waits for them now, and write the words of new texts."""
    if self.is_open("notifier") and self.notifier.poll_interval is not None:
        due = [
            one.id for one in records if isinstance(one, VectorRow) or (isinstance(one, JobDecision) and not one.error)
        ]
        if due:
            self.notifier.notify(due)
    if self.words is not None:
        self.words.add(records)


async def _open_vectors(self: Installation) -> VectorStore:
    from memory_layer.stores.vectors import open_vectors

    return await open_vectors(self.settings, size=self.pool)


async def _open_joined(self: Installation) -> JoinedVectors | None:
    from memory_layer.stores.vectors import joined_vectors

    await self.need("vectors")
    return joined_vectors(self.vectors, self.settings)


async def _open_objects(self: Installation) -> ObjectStore:
    from memory_layer.stores.objects import open_objects

    return await asyncio.to_thread(open_objects, self.settings, self.folder)


async def _open_archive(self: Installation) -> ObjectStore:
    from memory_layer.stores.objects import open_archive

    return await asyncio.to_thread(open_archive, self.settings, self.folder)


async def _open_outside(self: Installation) -> ObjectStore | MemoryLayerError | None:
    from memory_layer.stores.objects import archive_folder

    folder = archive_folder(self.settings, self.folder)
    if folder is not None and not folder.is_dir():
        return None
    try:
        return await _open_archive(self)
    except MemoryLayerError as error:
        return error


async def _open_eraser(self: Installation) -> ObjectStore:
    from memory_layer.stores.objects import open_eraser

    return await asyncio.to_thread(open_eraser, self.settings, self.folder)


async def _open_anchors(self: Installation) -> tuple[AnchorPlace, ...]:
    from memory_layer.stores.anchors import open_anchors

    return await asyncio.to_thread(open_anchors, self.settings, self.folder)


async def _open_embedder(self: Installation) -> Embedder | None:
    from memory_layer.stores.embedders import open_embedder

    return open_embedder(
        self.settings.embeddings_provider,
        self.settings.embeddings_model,
        self.settings.embeddings_dimensions,
        self.settings.embeddings_endpoint,
        self.settings.embeddings_api_key,
    )


async def _open_next_embedder(self: Installation) -> Embedder | None:
    from memory_layer.stores.embedders import open_embedder

    try:
        return open_embedder(
            self.settings.embeddings_next_provider,
            self.settings.embeddings_next_model,
            self.settings.embeddings_next_dimensions,
            self.settings.embeddings_next_endpoint,
            self.settings.embeddings_next_api_key,
        )
    except UsageError as error:
        raise UsageError(error.message.replace("EMBEDDINGS_", "EMBEDDINGS_NEXT_")) from None


async def _open_checkpoint_signer(self: Installation) -> Signer | None:
    from memory_layer.stores.signers import open_checkpoint_signer

    return await asyncio.to_thread(open_checkpoint_signer, self.folder)


async def _open_notifier(self: Installation) -> Notifier:
    from memory_layer.stores.notifiers import open_notifier

    return await open_notifier(self.settings)


_OPENERS: Final[Mapping[str, Callable[[Installation], Awaitable[Any]]]] = {
    "trust_root": _open_trust_root,
    "postgres": _open_postgres,
    "log": _open_log,
    "keys": _open_keys,
    "guard": _open_guard,
    "committer": _open_committer,
    "vectors": _open_vectors,
    "joined": _open_joined,
    "objects": _open_objects,
    "archive": _open_archive,
    "outside": _open_outside,
    "eraser": _open_eraser,
    "anchors": _open_anchors,
    "embedder": _open_embedder,
    "next_embedder": _open_next_embedder,
    "checkpoint_signer": _open_checkpoint_signer,
    "notifier": _open_notifier,
}
