"""Use cases: plain async functions ``(memory, caller, request) -> answer`` that every door calls the same way."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_layer.audit.trust_root import TrustRoot
from memory_layer.config import Settings
from memory_layer.model import Namespace
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.block_hashes import Blocks
from memory_layer.service.commit import Committer
from memory_layer.service.commit.transaction import SIGNER_TIMEOUT
from memory_layer.service.guarding import attend, guard_of, opened_guard, record_change
from memory_layer.service.log_watch import watch
from memory_layer.service.sealed import SealedBatches
from memory_layer.service.verification import Verdicts
from memory_layer.service.waiting import Waits
from memory_layer.service.warming import warm
from memory_layer.stores import Stores, open_keys, open_stores, warm_up
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.logs import find_log, read_trust_root
from memory_layer.stores.postgres import Postgres, open_postgres
from memory_layer.stores.protocols import Notifier


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything a use case needs: the opened stores and this process's one committer.

    ``verdicts``: nodes that this process has found right lately. ``seen``: namespaces by (tenant, name) as searches last saw them; each
    search that trusts one checks it before it answers.
    ``folder``: of keys and files. ``blocks``: hashes of the blocks of files, as they were when they were right.
    """

    stores: Stores
    committer: Committer
    verdicts: Verdicts = field(default_factory=Verdicts)
    seen: dict[tuple[str, str], Namespace] = field(default_factory=dict)
    refused: dict[uuid.UUID, float] = field(
        default_factory=dict
    )  # nodes whose expiry was refused as TAMPERED, and when
    waits: Waits = field(default_factory=Waits)
    warming: asyncio.Task[int] | None = None  # until it is done the first searches are slow
    folder: Path | None = None
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def sealed(self) -> SealedBatches:
        """Batches of the log whose seals this process has checked."""
        return self.committer.sealed

    @property
    def space(self) -> EmbeddingSpace:
        """Where text without a vector goes."""
        embedder, provider = self.stores.embedder, self.stores.vectors.provider
        also = tuple((other.model, other.dimension) for other in self.stores.embedders if other is not embedder)
        if embedder is None:
            return EmbeddingSpace(provider, None, None, also)
        return EmbeddingSpace(provider, embedder.model, embedder.dimension, also)


@dataclass(frozen=True, slots=True)
class OpenLog:
    """The log alone: what ``open_committer`` gives. ``log`` is the number of the log that the trust root names."""

    postgres: Postgres
    committer: Committer
    trust_root: TrustRoot
    log: int


@contextlib.asynccontextmanager
async def open_committer(
    settings: Settings, data: Path, dsn: str, notifier: Notifier | None = None
) -> AsyncIterator[OpenLog]:
    """The log alone, for an operator's command: it is to be written although the index or the file store may be down.

    ``notifier``: wakes workers for what is due after a commit, as by the service.
    """
    notify = None if notifier is None or notifier.poll_interval is None else notifier.notify
    trust_root = await asyncio.to_thread(read_trust_root, data)
    keys = await open_keys(settings, data)
    try:
        postgres = await open_postgres(dsn, size=2, origin=trust_root.origin)
        try:
            log = await find_log(postgres, trust_root.origin)
            async with opened_guard(settings, data, postgres, trust_root, log) as guard:
                committer = Committer(LogWriter(dsn, SIGNER_TIMEOUT, LogGuard(trust_root, data)), keys, notify, guard)
                try:
                    await record_change(guard, postgres, committer)
                    yield OpenLog(postgres, committer, trust_root, log)
                finally:
                    await committer.close()
        finally:
            await postgres.close()
    finally:
        await keys.close()


@contextlib.asynccontextmanager
async def open_memory(settings: Settings, data: Path, *, pool: int = 8) -> AsyncIterator[Memory]:
    """Open the stores and start the committer; on the way out what is waiting is committed first."""
    async with open_stores(settings, data, pool=pool) as stores:
        notify = None if stores.notifier.poll_interval is None else stores.notifier.notify
        guard = await guard_of(stores, data)
        writer = LogWriter(stores.postgres.dsn, SIGNER_TIMEOUT, LogGuard(stores.trust_root, data))
        committer = Committer(writer, stores.keys, notify, guard)
        attending = asyncio.create_task(attend(guard, stores.postgres, committer), name="rollback guard")
        warming = asyncio.create_task(warm(stores), name="warm-up")
        embedding = asyncio.create_task(warm_up(stores))
        watching = asyncio.create_task(watch(stores.postgres, committer.guard), name="log watch")
        try:
            yield Memory(stores, committer, warming=warming, folder=data)
        finally:
            attending.cancel()
            await committer.close()
            await _end([attending, warming, watching], embedding)


async def _end(tasks: Collection[asyncio.Task[Any]], last: asyncio.Task[Any]) -> None:
    """Cancel the tasks until they are over, and wait for the last one. Once is not enough: a cancellation that meets a timeout or a
    driver's own clean-up may be taken for that, and a loop would go on."""
    pending = {*tasks, last}
    while pending:
        for task in tasks:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)
